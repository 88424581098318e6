"""The run keys: a digest of everything a stage's output depends on, chained from stage to stage."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import moe_compress
from moe_compress.types import digest_of


def stage_keys(
    parameters: Mapping[str, Any],
    domain: str,
    base_digest: str,
    demonstrations: Path,
    domains_folder: Path,
) -> dict[str, str]:
    """Return stage -> sha256 of what its output depends on; a stage's key contains those it builds on.

    Args:
        parameters: the run's parameters as Kedro resolved them.
        domain: the domain compressed for.
        base_digest: digest of the base checkpoint's weights and config.
        demonstrations: the domain's demonstrations file.
        domains_folder: holds a folder with benchmark and held-out text per task.
    """
    own = parameters["domains"][domain]
    tasks = evaluated_tasks(parameters["evaluate"]["tasks"], domain)
    texts = [file_digest(demonstrations), *_benchmark_digests(domains_folder, tasks)]
    collect = digest_of(
        [base_digest, texts, parameters["data"], parameters["collect"], source("collection", "families")]
    )
    select = digest_of([collect, parameters["select"], own.get("select"), source("methods")])
    rewrite = digest_of([select, parameters["rewrite"], source("checkpoint", "families")])
    baseline = digest_of([base_digest, texts[1:], parameters["evaluate"], source("evaluation")])
    candidate = digest_of([rewrite, baseline])
    run = digest_of([candidate, parameters["gates"], parameters["release"], own, source("gates")])
    return {
        "collect": collect,
        "select": select,
        "rewrite": rewrite,
        "baseline": baseline,
        "candidate": candidate,
        "run": run,
    }


def evaluated_tasks(tasks: Sequence[str], domain: str) -> tuple[str, ...]:
    """Return the tasks to evaluate, sorted: those asked for, and the domain's own."""
    return tuple(sorted({domain, *tasks}))


def _benchmark_digests(folder: Path, tasks: tuple[str, ...]) -> list[tuple[str, str, str]]:
    return [
        (task, file_digest(folder / task / "benchmark.jsonl"), file_digest(folder / task / "heldout.jsonl"))
        for task in tasks
    ]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes; a file that is not there has the digest `absent`."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


@cache
def source(*packages: str) -> str:
    """Return a digest of the package's own code that a stage runs, so that a changed method runs again."""
    root = Path(moe_compress.__file__).parent
    files = sorted(path for package in packages for path in (root / package).rglob("*.py"))
    return digest_of([[str(path.relative_to(root)), file_digest(path)] for path in files])
