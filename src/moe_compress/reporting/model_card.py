"""The checkpoint's README.md in the Hugging Face hub's format, written offline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from moe_compress.atomic import write_atomically
from moe_compress.reporting import usage, wording
from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.templating import fill_template
from moe_compress.types import TaskComparison

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FROM_BASE = ("license", "license_name", "license_link", "language")


def write_model_card(report: CompressionReport, folder: Path, base_folder: Path | None = None) -> Path:
    """Write `README.md` into a checkpoint folder, whole or not at all.

    Args:
        report: what the card tells.
        folder: the compressed checkpoint.
        base_folder: the base checkpoint; if it has a card, licence and language are taken from it. Otherwise
            the licence is `provenance["license"]`, or is left out: an unknown licence is not guessed.

    Returns:
        The file written.
    """
    card = card_data(report, base_folder)
    body = fill_template(
        "model_card.md.j2",
        report=report,
        title=_model_name(report),
        load=usage.how_to_load(report, "path/to/this/folder"),
        loading_note=usage.loading_note(report),
        reproduce=usage.how_to_reproduce(report),
        text=as_markdown,
        licence=card.license,
    )
    content = f"---\n{card.to_yaml()}\n---\n\n{body}"
    path = Path(folder) / "README.md"
    write_atomically(path, content.encode())
    return path


def card_data(report: CompressionReport, base_folder: Path | None = None) -> ModelCardData:
    """Return the card's metadata; see `write_model_card` for where the licence comes from."""
    base_id = report.provenance.get("base_id", "")
    # The hub links only to its own ids; a local folder's name stays in the text. Of its four relations
    # (adapter, merge, quantized, finetune) finetune fits: one base, same precision, other weights.
    relation: dict[str, Any] = (
        {"base_model": base_id, "base_model_relation": "finetune"} if _HUB_ID.fullmatch(base_id) else {}
    )
    technique = "pruned" if report.plan.is_pruning else "merged-experts"
    return ModelCardData(
        model_name=_model_name(report),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["moe", technique, "expert-pruning", report.plan.method, report.domain],
        eval_results=[_accuracy(row) for row in report.comparisons.values()] or None,
        **relation,
        **_terms(report, base_folder),
    )


def as_markdown(value: object) -> str:
    """Return text that Markdown shows as it is, in a line or in a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def _model_name(report: CompressionReport) -> str:
    base = report.provenance.get("base_id", "moe").rstrip("/").rpartition("/")[2]
    return f"{base}-{report.domain}-{report.experts_change[1].replace(' ', '-')}-experts"


def _accuracy(comparison: TaskComparison) -> EvalResult:
    return EvalResult(
        # Among choices guessing is sometimes right; of what a model writes itself nothing is right by chance.
        task_type="multiple-choice" if comparison.chance > 0 else "text-generation",
        dataset_type=comparison.task,
        dataset_name=comparison.task,
        metric_type="accuracy",
        metric_value=round(comparison.candidate_accuracy, 4),
        metric_name=f"accuracy (base model {wording.percent(comparison.baseline_accuracy)})",
    )


def _terms(report: CompressionReport, base_folder: Path | None) -> dict[str, Any]:
    """Return licence and language as the base's card states them."""
    path = None if base_folder is None else Path(base_folder) / "README.md"
    if path is None or not path.is_file():
        known = report.provenance.get("license")
        return {"license": known} if known else {}
    # Only a few plain fields are read; a base whose evaluation block is malformed must not stop ours.
    stated = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    return {name: stated[name] for name in _FROM_BASE if stated.get(name)}
