"""How to make the model again and how to load it, as commands a reader can paste."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from moe_compress.reporting import wording
from moe_compress.reporting.content import CompressionReport


@dataclass(frozen=True)
class Snippet:
    """A titled piece of code."""

    title: str
    code: str


def how_to_reproduce(report: CompressionReport) -> str:
    """Return the shell commands that run the same compression again."""
    commit = report.provenance.get("git_commit", "none").removesuffix("+changes")
    command = report.provenance.get("command") or shlex.join(["kedro", "run", f"--pipelines=prune_{report.domain}"])
    return f"git checkout {shlex.quote(commit)}\n{command}" if commit != "none" else command


def how_to_load(report: CompressionReport, folder: str) -> tuple[Snippet, ...]:
    """Return one snippet for each way this checkpoint loads.

    Args:
        report: the run; its candidate's provenance tells in `loaded_by` which of transformers' classes loaded it,
            and where none did, as where layers differ, this package's own loader is shown.
        folder: the checkpoint's folder, as the reader of the snippets would type it.
    """
    place, is_uniform = _quoted(folder), report.plan.new_layout.is_uniform
    loader = report.candidate.provenance.get("loaded_by", "")
    if is_uniform and loader.startswith("Auto"):
        snippets = [
            Snippet(
                "transformers",
                f"from transformers import {loader}, AutoTokenizer\n\n"
                f'model = {loader}.from_pretrained({place}, dtype="auto")\n'
                f"tokenizer = AutoTokenizer.from_pretrained({place})",
            ),
        ]
    else:
        code = f'import moe_compress\nmodel = moe_compress.load_model({place}, dtype="auto")'
        snippets = [Snippet("moe-compress", code)]
    if is_uniform and not any(engine.engine == "vLLM" and engine.is_warning for engine in report.compatibility):
        snippets.append(Snippet("vLLM", f"vllm serve {shlex.quote(folder)}"))
    if report.model_uri:
        uri = _quoted(report.model_uri)
        snippets.append(Snippet("MLflow", f"import mlflow\n\nfolder = mlflow.artifacts.download_artifacts({uri})"))
    return tuple(snippets)


def loading_note(report: CompressionReport) -> str | None:
    """Return what a reader must know before loading, if anything."""
    if report.plan.new_layout.is_uniform:
        return None
    counts = wording.span(report.plan.new_layout.num_experts)
    return (
        f"Layers keep different numbers of experts ({counts}), told by per_layer_config in config.json. Stock "
        "transformers reads one number for all layers and refuses this folder; moe-compress builds the same model "
        "class layer by layer, and what it returns is used and saved like any other transformers model."
    )


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
