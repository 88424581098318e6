"""Where a version came from, and in what two versions differ, ready for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moe_compress.datasets.keyed import KEY_LENGTH
from moe_compress.errors import MoeCompressError, PlanError
from moe_compress.operations.check import compare_leaves
from moe_compress.plans.document import read_document
from moe_compress.plans.margins import compare_layers
from moe_compress.registry.promotion import PROMOTED, ROLLED_BACK
from moe_compress.registry.tracking import read_artifact, read_metrics
from moe_compress.registry.versions import RegisteredVersion, find_version, list_aliases, read_json_tag
from moe_compress.types import CompressionPlan

_MEASURED = ("accuracy.", "share_kept.", "perplexity.", "tokens_per_second")


def find(model: str, reference: str | None) -> RegisteredVersion:
    """Return a version by number or alias; without either the champion, else the candidate, else the newest.

    Raises:
        RegistryError: if there is none.
    """
    if reference is None:
        aliases = list_aliases(model)
        reference = next((name for name in ("champion", "candidate") if name in aliases), None)
    if reference is None or reference.isdigit():
        return find_version(model, reference)
    return find_version(model, alias=reference)


def describe_version(version: RegisteredVersion) -> dict[str, Any]:
    """Return a version's lineage as a tree of names and values; what its tags do not tell is None."""
    tags = version.tags
    return {
        "version": version.uri,
        "aliases": sorted(name for name, number in list_aliases(version.name).items() if number == version.version),
        "base model": {
            "id": tags.get("base_id"),
            "revision": tags.get("base_revision"),
            "weights digest": tags.get("base_weights_digest"),
            "settings digest": tags.get("base_settings_digest"),
        },
        "data": {
            "domain": tags.get("domain"),
            "demonstrations": tags.get("num_demonstrations"),
            "demonstrations digest": tags.get("demonstrations_digest"),
            "benchmark digest": tags.get("benchmark_digest"),
        },
        "plan": {
            "method": tags.get("method"),
            "budget": tags.get("budget"),
            "seed": tags.get("seed"),
            "digest": tags.get("plan_digest"),
        },
        "checkpoint": {
            "place": version.source,
            "experts": tags.get("experts"),
            "bytes": _change(tags, "num_bytes"),
            "parameters": _change(tags, "num_parameters"),
            "weights digest": tags.get("candidate_weights_digest"),
            "checksums digest": tags.get("checksums_digest"),
        },
        "gates": {"passed": tags.get("gates_passed"), **_gates(tags)},
        "code": {"moe-compress": tags.get("package_version"), "git commit": tags.get("git_commit")},
        "run": {"key": tags.get("run_key"), "MLflow run": version.run_id or None, "command": tags.get("command")},
        "moved": {name: _record(tags[name]) for name in (PROMOTED, ROLLED_BACK) if name in tags},
    }


def compare_versions(one: RegisteredVersion, other: RegisteredVersion) -> dict[str, Any]:
    """Return in what two versions differ: lineage, parameters, measured values, and how far their plans overlap."""
    before, after = (_flat(describe_version(each)) for each in (one, other))
    skipped = ("version", "aliases", "gates", "moved", "run", "checkpoint.place")
    lineage = {
        name: values
        for name, values in _pairs(before, after).items()
        if not name.startswith(skipped) and values[0] != values[1]
    }
    blocks = sorted({name for each in (one, other) for name in each.tags if name.startswith("parameters.")})
    parameters = {
        f"{block.removeprefix('parameters.')}.{leaf}": [*values]
        for block in blocks
        for leaf, values in compare_leaves(one.tags.get(block, "{}"), other.tags.get(block, "{}")).items()
    }
    layers, reason = _layers(one, other)
    return {
        "versions": [one.uri, other.uri],
        "same_run_key": one.tags.get("run_key") == other.tags.get("run_key"),
        "lineage": lineage,
        "parameters": parameters,
        "gates": _pairs(_gates(one.tags), _gates(other.tags)),
        "measured": _measured(one, other),
        "plan_overlap": sum(layer["overlap"] for layer in layers) / len(layers) if layers else None,
        "plan_overlap_unknown": reason,
        "layers": layers,
    }


def _change(tags: Mapping[str, str], name: str) -> str | None:
    before, after = (tags.get(f"{role}_{name}") for role in ("baseline", "candidate"))
    return f"{before} -> {after}" if before and after else None


def _gates(tags: Mapping[str, str]) -> dict[str, str]:
    """Return gate -> its outcome in a few words."""
    gates = read_json_tag(tags.get("gates", "{}"))
    if gates is None:
        return {"each": "too long for a tag; see report.html of the MLflow run"}
    said = {}
    for name, gate in gates.items():
        word = next(word for word in _LIMITS if word in gate)
        limit = f"{word.replace('_', ' ')} {gate[word]:g}" if gate[word] is not None else gate["basis"]
        observed = "not measured" if gate["observed"] is None else f"{gate['observed']:.4g}"
        verdict = "passed" if gate["passed"] else f"not passed ({gate['severity']})"
        said[name] = f"{observed}, {limit}: {verdict}"
    return said


_LIMITS = ("at_least", "at_most")


def _record(text: str) -> str:
    record = read_json_tag(text)
    if not isinstance(record, Mapping):  # cut, or set by hand
        return text
    return f"{record['at']} by {record['by'] or 'no one named'}: {record['why'] or 'no reason given'}"


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _measured(one: RegisteredVersion, other: RegisteredVersion) -> dict[str, list[float | None]]:
    before, after = (read_metrics(each.run_id) for each in (one, other))
    pairs = _pairs(before, after)
    return {
        name: pairs[name]
        for name in sorted(pairs)
        if any(word in name for word in _MEASURED) and not name.endswith((".low", ".high"))
    }


def _pairs(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [before.get(name), after.get(name)] for name in dict.fromkeys([*before, *after])}


def _layers(one: RegisteredVersion, other: RegisteredVersion) -> tuple[list[dict[str, Any]], str | None]:
    """Return per layer which experts two versions keep alike; none, and the reason, where that is not known."""
    try:
        return compare_layers(_plan(one), _plan(other)), None
    except MoeCompressError as error:
        return [], str(error)


def _plan(version: RegisteredVersion) -> CompressionPlan:
    place = f"{version.tags.get('run_key', '')[:KEY_LENGTH]}/plan.json"
    text = read_artifact(version.run_id, place) if version.run_id else None
    if text is None:
        raise PlanError(f"the MLflow run of {version.uri} keeps no plan.json; run its pipeline again to log it")
    return read_document(text, version.uri)
