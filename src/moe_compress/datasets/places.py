"""Where a base model can be: a folder, a revision on the Hugging Face hub, or a version in the registry."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from moe_compress.errors import CheckpointError

_HUB = re.compile(r"hf://(?P<hub_id>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_REGISTERED = re.compile(r"models:/(?P<name>[\w.-]+)(@(?P<alias>[\w-]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class HubPlace:
    """A model on the Hugging Face hub, at a branch, tag or commit."""

    hub_id: str
    revision: str | None = None


@dataclass(frozen=True)
class RegisteredPlace:
    """A version of a registered model, by its number or by an alias."""

    name: str
    version: str | None = None
    alias: str | None = None


Place = Path | HubPlace | RegisteredPlace


def find_place(text: str, hub_id: str | None = None, revision: str | None = None) -> Place:
    """Return the place that a base model's address stands for.

    Args:
        text: a folder, `file:///folder`, `hf://org/model@revision`, `models:/name@alias` or `models:/name/3`.
        hub_id: a model on the hub that is meant instead, unless the address has one of these forms itself.
        revision: its revision.

    Raises:
        CheckpointError: if the address has another form.
    """
    if "://" not in text and not text.startswith("models:"):
        return HubPlace(hub_id, revision) if hub_id else Path(text)
    if found := _HUB.fullmatch(text):
        return HubPlace(found["hub_id"], found["revision"])
    if found := _REGISTERED.fullmatch(text):
        return RegisteredPlace(found["name"], found["version"], found["alias"])
    address = urlparse(text)
    if address.scheme == "file":
        return Path(url2pathname(address.path))
    raise CheckpointError(
        f"'{text}' is no place of a base model; give a folder, hf://org/model@revision, models:/name@alias or "
        "models:/name/3"
    )
