"""Move the champion alias to a gated candidate, and back, and keep who moved it and why."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from moe_compress.errors import RegistryError
from moe_compress.registry.client import mlflow_client
from moe_compress.registry.versions import RegisteredVersion, aliases_of, resolve, shortened

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
PROMOTED, ROLLED_BACK = "promoted", "rolled_back"
"""Tags that say who moved the alias, when and why."""

_LONGEST_NAME, _LONGEST_REASON = 200, 2000
"""In characters; JSON writes some as two, and the record must fit a tag whole."""


def promote(version: RegisteredVersion, by: str = "", why: str = "") -> bool:
    """Point `champion` at a version and `previous` at the champion before it; twice is as once.

    Args:
        version: the new champion.
        by: who asks for it.
        why: the reason to keep.

    Returns:
        Whether anything was moved.

    Raises:
        RegistryError: if MLflow refuses.
    """
    with mlflow_client(f"promote '{version.name}' version {version.version}") as client:
        champion = aliases_of(client, version.name).get(CHAMPION)
        is_moved = champion != version.version
        if is_moved:
            # What an interruption leaves is a record of a step that the next call makes, never a lost champion.
            client.set_model_version_tag(version.name, version.version, PROMOTED, _record(by, why))
            if champion is not None:
                client.set_registered_model_alias(version.name, PREVIOUS, champion)
            client.set_registered_model_alias(version.name, CHAMPION, version.version)
        if ROLLED_BACK in version.tags:
            client.delete_model_version_tag(version.name, version.version, ROLLED_BACK)
    return is_moved


def roll_back(model_name: str, by: str = "", why: str = "") -> RegisteredVersion:
    """Point `champion` back at the version before the last promotion, one step only, and return that version.

    Raises:
        RegistryError: if no earlier champion is known, or MLflow refuses.
    """
    with mlflow_client(f"roll back '{model_name}'") as client:
        aliases = aliases_of(client, model_name)
        if PREVIOUS in aliases:
            bad, good = aliases.get(CHAMPION), aliases[PREVIOUS]
            if bad not in (None, good):
                client.set_model_version_tag(model_name, bad, ROLLED_BACK, _record(by, why))
            client.set_registered_model_alias(model_name, CHAMPION, good)
            client.delete_registered_model_alias(model_name, PREVIOUS)
            return resolve(model_name, CHAMPION)
    raise RegistryError(
        f"model '{model_name}' has no earlier champion to go back to; promote a candidate instead "
        f"(aliases: {', '.join(sorted(aliases)) or 'none'})"
    )


def _record(by: str, why: str) -> str:
    said = {"by": shortened(by, _LONGEST_NAME), "why": shortened(why, _LONGEST_REASON)}
    record = {**said, "at": datetime.now(UTC).isoformat(timespec="seconds")}
    return shortened(json.dumps(record, ensure_ascii=False))
