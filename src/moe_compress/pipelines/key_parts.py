"""What a run key is made of, part by part, so that two versions' keys can be told apart in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_compress.pipelines.benchmarks import benchmarks_of
from moe_compress.pipelines.digests import file_digest, source, versions
from moe_compress.pipelines.given_plan import locate
from moe_compress.pipelines.run_keys import (
    evaluated_tasks,
    find_calibration,
    find_source,
    what_evaluates,
    what_tunes,
)
from moe_compress.types import digest_of

PREFIX = "part."
"""What a part's name begins with among a run's keys."""

BLOCKS = ("data", "collect", "select", "rewrite", "evaluate", "statistics_gates", "gates", "release")
"""The parameter blocks that a run key depends on."""

_CODE = (
    *("collection", "families", "methods", "plans", "checkpoint", "evaluation", "gates", "types", "pipelines"),
    "loading.py",
)


def key_parts(
    parameters: Mapping[str, Any], domain: str, demonstrations: Mapping[str, Path], domains_folder: Path
) -> dict[str, str]:
    """Return part -> what it is, short enough for tags; the base model's own digests are not among them.

    The run key alone decides whether two runs are the same; the parts are there to say in what they differ.

    Args:
        parameters: the run's parameters as Kedro resolved them.
        domain: the domain compressed for.
        demonstrations: domain -> its demonstrations file, of each whose statistics are used.
        domains_folder: holds a folder with benchmark and held-out text per task.
    """
    given = find_source(parameters, domain)
    tasks = evaluated_tasks(parameters["evaluate"]["tasks"], tuple(demonstrations))
    asked = benchmarks_of(parameters, domain).items()
    tuned = what_tunes(parameters)
    return {
        "demonstrations_files": compact({name: file_digest(path) for name, path in demonstrations.items()}),
        "benchmarks": compact({task: digest_texts(domains_folder / task) for task in tasks}),
        "public_benchmarks": compact({name: digest_of(each.model_dump())[:16] for name, each in asked}),
        "calibration_digest": find_calibration(parameters, domain, domains_folder) or "none",
        "given_plan_digest": file_digest(locate(given, domain)) if given else "none",
        **{f"parameters.{block}": compact(parameters[block]) for block in BLOCKS},
        "parameters.tune": compact(tuned),
        "parameters.domain": compact(parameters["domains"][domain]),
        "code": compact({place: source(place)[:16] for place in (*_CODE, *(["tuning"] if tuned else []))}),
        "libraries": compact(versions(*what_evaluates(parameters, domain))),
    }


def find_demonstrations(parameters: Mapping[str, Any], domain: str, catalog: Any) -> dict[str, Path]:
    """Return domain -> its demonstrations file, of each whose statistics a domain's model is made from."""
    domains = parameters["domains"][domain].get("of") or (domain,)
    return {name: catalog[f"{name}.demonstration_rows"].path for name in domains}


def digest_texts(folder: Path) -> str:
    """Return what identifies a task's benchmark and held-out text."""
    return " ".join(file_digest(folder / name)[:16] for name in ("benchmark.jsonl", "heldout.jsonl"))


def compact(value: Any) -> str:
    """Return JSON on one line, its keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)


def as_keys(parts: Mapping[str, str]) -> dict[str, str]:
    """Return parts under the names they have among a run's keys."""
    return {f"{PREFIX}{name}": value for name, value in parts.items()}


def from_keys(keys: Mapping[str, str]) -> dict[str, str]:
    """Return the parts among a run's keys under their own names."""
    return {name.removeprefix(PREFIX): value for name, value in keys.items() if name.startswith(PREFIX)}
