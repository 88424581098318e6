"""The registered pipelines: `prune_`, `apply_`, `sweep_`, `collect_`, `reduce_<domain>`, and those of no domain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project


def register_pipelines() -> dict[str, Pipeline]:
    """Return name -> pipeline; a new block under `domains` in any environment is a new pipeline."""
    from moe_compress.pipelines import prune, results, train_reference

    blocks = configured_domains()
    domains = tuple(name for name, parts in blocks.items() if not parts)
    pipelines = {f"prune_{domain}": prune.create_pipeline(domain) for domain in domains}
    mixtures = {name: parts for name, parts in blocks.items() if parts}
    return {
        **pipelines,
        **{f"prune_{name}": prune.create_mixture_pipeline(name, parts) for name, parts in mixtures.items()},
        **{f"apply_{domain}": prune.create_given_pipeline(domain) for domain in domains},
        **{f"sweep_{domain}": prune.create_sweep_pipeline(domain) for domain in domains},
        **{f"collect_{domain}": prune.create_collect_pipeline(domain) for domain in domains},
        **{f"reduce_{domain}": prune.create_reduce_pipeline(domain) for domain in domains},
        "collect": prune.create_joint_pipeline(domains),
        "results": results.create_pipeline(),
        "train_reference": train_reference.create_pipeline(),
        "__default__": pipelines.get("prune_medical", Pipeline([])),
    }


def configured_domains() -> dict[str, tuple[str, ...]]:
    """Return the names under `domains` in the parameter files of all environments, sorted, and what each mixes.

    Where several environments name the parts of one mixture, `local` is heeded first and `base` last.
    """
    root = find_kedro_project(Path.cwd()) or Path.cwd()
    files = sorted((root / "conf").glob("*/parameters*.yml"), key=lambda path: (_rank(path.parent.name), path))
    parts: dict[str, tuple[str, ...]] = {}
    for block in map(_read, files):
        domains = block.get("domains") if isinstance(block, dict) else None
        for name, domain in (domains or {}).items():
            said = (domain or {}).get("of")
            parts[str(name)] = parts.get(str(name), ()) if said is None else tuple(map(str, said))
    return dict(sorted(parts.items()))


def _read(path: Path) -> Any:
    """Return a file's content as it stands: names refer to nothing, and OmegaConf takes a second to look."""
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def _rank(environment: str) -> int:
    return {"base": 0, "local": 2}.get(environment, 1)
