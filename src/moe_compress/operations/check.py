"""Is a new run needed, and why: what a run would be made from now, held against what versions were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from moe_compress import __version__
from moe_compress.operations.base import BaseFacts, inspect_base
from moe_compress.operations.project import Project
from moe_compress.pipelines.key_parts import find_demonstrations, key_parts
from moe_compress.pipelines.request_checks import check_selection
from moe_compress.pipelines.run_keys import stage_keys
from moe_compress.registry.promotion import CANDIDATE, CHAMPION, ROLLED_BACK
from moe_compress.registry.versions import RELEASED, RegisteredVersion, list_aliases, list_versions
from moe_compress.types import digest_of

Reason = dict[str, str]

_FILES = {
    "given_plan_digest": ("given plan", "the plan that is given"),
    "calibration_digest": ("calibration", "the text that swaps are measured on"),
}
"""Parts that are one file's digest, and how they are called."""


def check_domain(project: Project, domain: str) -> dict[str, Any]:
    """Return whether a domain's model has to be made again and why, ready for JSON; nothing is downloaded.

    Raises:
        MoeCompressError: if the request cannot be met at all, or base model or data are not there.
    """
    model = str(project.own(domain)["registered_model"])
    check_selection(project.parameters, domain)
    versions, aliases = list_versions(model), list_aliases(model)
    base = inspect_base(project.catalog["base_model"], versions)
    rows = find_demonstrations(project.parameters, domain, project.catalog)
    folder = project.catalog["domains_folder"].load()
    parts = key_parts(project.parameters, domain, rows, folder)
    key = None
    if base.settings_digest is not None:
        identity = digest_of([base.weights_digest, base.settings_digest])
        key = stage_keys(project.parameters, domain, identity, rows, folder)["run"]
    made = next((version for version in versions if key and version.tags.get("run_key") == key), None)
    same = made if made and RELEASED in made.tags else None
    compared = made or find_compared(versions, aliases)
    reasons = [] if same else explain(compared, base, parts)
    return {
        "domain": domain,
        "model": model,
        "needed": same is None,
        "run_key": key,
        "base": {"name": base.name, "revision": base.revision, "weights_digest": base.weights_digest},
        "version": compared.version if compared else None,
        "aliases": sorted(alias for alias, version in aliases.items() if compared and version == compared.version),
        "to_promote": to_promote(same, aliases),
        "reasons": reasons,
        "notes": note(compared, base, aliases, is_same=same is not None),
    }


def to_promote(same: RegisteredVersion | None, aliases: Mapping[str, str]) -> str | None:
    """Return the version that is what a run would give, if it is not the champion and nobody took it back."""
    if same is None or ROLLED_BACK in same.tags or aliases.get(CHAMPION) == same.version:
        return None
    return same.version


def find_compared(versions: Sequence[RegisteredVersion], aliases: Mapping[str, str]) -> RegisteredVersion | None:
    """Return the version that people use: the champion, else the candidate, else the newest."""
    wanted = next((aliases[alias] for alias in (CHAMPION, CANDIDATE) if alias in aliases), None)
    return next((version for version in versions if wanted in (None, version.version)), None)


def explain(version: RegisteredVersion | None, base: BaseFacts, parts: Mapping[str, str]) -> list[Reason]:
    """Return why a run would not give this version again."""
    if version is None:
        return [{"what": "no version", "text": "nothing is registered yet"}]
    tags = version.tags
    reasons = []
    if tags.get("base_weights_digest") != base.weights_digest:
        before, now = str(tags.get("base_weights_digest"))[:12], base.weights_digest[:12]
        reasons.append({"what": "base weights", "text": f"the base model has new weights: {before} -> {now}"})
    if tags.get("base_settings_digest") != base.settings_digest:
        files = f": {', '.join(base.changed_settings)}" if base.changed_settings else ""
        text = f"the base model's config, tokenizer or templates changed{files}"
        reasons.append({"what": "base settings", "text": text})
    for name, value in parts.items():
        if tags.get(name) != value:
            reasons.append(explain_part(name, tags.get(name), value, tags))
    if not reasons and RELEASED not in tags:
        reasons.append({"what": "unfinished", "text": f"the release of version {version.version} was interrupted"})
    return reasons or [
        {"what": "run key", "text": "the run's key changed in a part that its tags do not tell apart"}
    ]


def explain_part(name: str, before: str | None, now: str, tags: Mapping[str, str]) -> Reason:
    """Return one part's change in words."""
    if before is None:
        return {"what": name, "text": f"the version does not tell its {name}"}
    if name in _FILES:
        what, text = _FILES[name]
        return {"what": what, "text": f"{text} changed: {before[:12]} -> {now[:12]}"}
    changes = compare_leaves(before, now)
    if name == "demonstrations_files":
        return {"what": "demonstrations", "text": f"the demonstrations changed: {', '.join(sorted(changes))}"}
    if name == "benchmarks":
        return {"what": name, "text": f"benchmark or held-out text changed: {', '.join(sorted(changes))}"}
    if name == "public_benchmarks":
        return {"what": "public benchmarks", "text": f"their definitions changed: {', '.join(sorted(changes))}"}
    if name == "code":
        releases = f"moe-compress {tags.get('package_version')} -> {__version__}"
        return {"what": name, "text": f"code that a run depends on changed ({releases}): {', '.join(changes)}"}
    block = name.removeprefix("parameters.")
    said = ", ".join(f"{block}.{leaf} {old} -> {new}" for leaf, (old, new) in changes.items())
    return {"what": "libraries" if name == "libraries" else "parameters", "text": said}


def compare_leaves(before: str, now: str) -> dict[str, tuple[Any, Any]]:
    """Return dotted name -> value before and now, where two JSON texts differ."""
    try:
        old, new = _leaves(json.loads(before)), _leaves(json.loads(now))
    except ValueError:  # a tag that was cut
        return {"text": (before[:20], now[:20])}
    names = dict.fromkeys([*old, *new])
    return {
        name: (old.get(name, "absent"), new.get(name, "absent")) for name in names if old.get(name) != new.get(name)
    }


def _leaves(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= _leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    return found


def note(
    version: RegisteredVersion | None, base: BaseFacts, aliases: Mapping[str, str], is_same: bool
) -> list[str]:
    """Return what is worth knowing and no reason for a run."""
    if version is None:
        return []
    notes = []
    known = version.tags.get("base_revision")
    if known != base.revision and version.tags.get("base_weights_digest") == base.weights_digest:
        notes.append(f"the base model's revision went from {known} to {base.revision} with the same weights")
    if is_same and ROLLED_BACK in version.tags:
        notes.append(f"version {version.version} was rolled back: {version.tags[ROLLED_BACK]}")
    elif is_same and aliases.get(CHAMPION) != version.version:
        command = f"kedro compress promote {version.name} --version {version.version}"
        notes.append(f"version {version.version} is not the champion; {command} makes it so")
    return notes
