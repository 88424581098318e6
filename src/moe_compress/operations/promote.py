"""Who becomes champion: only a version whose gates passed and whose files are what was registered."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import Any

from moe_compress.errors import GateFailedError, RegistryError
from moe_compress.operations.verify import verify_version
from moe_compress.registry import promotion
from moe_compress.registry.promotion import CANDIDATE, CHAMPION, PREVIOUS, ROLLED_BACK
from moe_compress.registry.versions import RegisteredVersion, find_version, list_aliases


def promote_model(model: str, version: str | None, by: str, why: str, folder: Path | None = None) -> dict[str, Any]:
    """Make a version the champion and return what was done, ready for JSON.

    Args:
        model: the registered model.
        version: the version; the candidate if not given.
        by: who promotes it.
        why: the reason to keep.
        folder: a copy of its files to hash; they are fetched if not given and in a store.

    Raises:
        GateFailedError: if its gates did not pass.
        RegistryError: if there is no such version, its files changed, or it was rolled back and is not named.
    """
    found = find_version(model, version) if version else find_version(model, alias=CANDIDATE)
    if list_aliases(model).get(CHAMPION) != found.version:
        check_promotable(found, version is not None, folder)
    moved = promotion.promote(found, by, why)
    return {"model": model, "version": found.version, "moved": moved, "by": by, "why": why, **aliases_now(model)}


def check_promotable(version: RegisteredVersion, is_named: bool, folder: Path | None) -> None:
    """Check that a version may become champion; every file of it is read."""
    if version.tags.get("gates_passed") != "true":
        raise GateFailedError(
            f"{version.uri} has no passed gates (gates_passed is {version.tags.get('gates_passed', 'not set')}); "
            "run its pipeline until they pass"
        )
    if ROLLED_BACK in version.tags and not is_named:
        raise RegistryError(
            f"{version.uri} was rolled back ({version.tags[ROLLED_BACK]}); say --version {version.version} to "
            "promote it all the same"
        )
    verified = verify_version(version, folder)
    if not verified["intact"]:
        name, problem = next(iter(verified["damaged"].items()))
        raise RegistryError(
            f"{version.uri} is not what was registered: {name}: {problem}; nothing was promoted, see kedro "
            f"compress verify {version.name} --version {version.version}"
        )


def roll_back_model(model: str, by: str, why: str) -> dict[str, Any]:
    """Make the champion before the last promotion champion again and return what was done, ready for JSON.

    Raises:
        RegistryError: if there is none.
    """
    bad = list_aliases(model).get(CHAMPION)
    good = promotion.roll_back(model, by, why)
    return {"model": model, "version": good.version, "instead_of": bad, "by": by, "why": why, **aliases_now(model)}


def aliases_now(model: str) -> dict[str, Any]:
    """Return a model's aliases."""
    aliases = list_aliases(model)
    return {"aliases": {name: aliases.get(name) for name in (CANDIDATE, CHAMPION, PREVIOUS)}}


def find_person() -> str:
    """Return who types: the person behind a CI job where it tells, else this machine's user."""
    for name in ("GITHUB_ACTOR", "GITLAB_USER_LOGIN", "BUILD_USER_ID"):
        if os.environ.get(name):
            return os.environ[name]
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user may have no name
        return f"user {os.getuid()}"
