"""An input checkpoint: a folder, a model on the hub or a registered version, loaded as a reference with digests."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError
from tqdm import tqdm

from moe_compress.checkpoint.digest import (
    join_digests,
    settings_file_digests,
    unread_bytes,
    weight_file_digests,
    weight_paths,
)
from moe_compress.checkpoint.index import list_strays, read_index
from moe_compress.datasets.places import HubPlace, Place, RegisteredPlace, find_place
from moe_compress.errors import CheckpointError
from moe_compress.types import CheckpointReference

logger = logging.getLogger(__name__)

WANTED = ["*.safetensors", "*.json", "*.model", "*.jinja", "*.txt", "*.py", "README.md"]
"""Code travels unread, for loaders that a reader trusts with it and `auto_map` names it; here it never runs."""
UNWANTED = [*(f"*/{name}" for name in WANTED if name != "*.jinja"), "consolidated*"]
"""The same weights once more in other formats, as gpt-oss has them in folders and Mistral beside the shards. Of
what lies in folders, chat templates alone belong to a checkpoint."""
_PATIENCE = 2.0
"""Seconds of reading weights before a bar is shown."""


class CheckpointDataset(AbstractDataset[CheckpointReference, CheckpointReference]):
    """An input checkpoint, in a folder, on the Hugging Face hub or registered; its headers are checked first.

    Args:
        filepath: its address, see `find_place`; a plain folder gives way to `hub_id`.
        path: where digests of unchanged files are remembered.
        given: a folder to take instead of either.
        hub_id: the model's id on the hub; its snapshot is downloaded, or taken from the hub's cache.
        revision: branch, tag or commit of the hub's repository; a commit makes runs repeatable.
    """

    def __init__(
        self,
        filepath: str,
        path: str,
        given: str | None = None,
        hub_id: str | None = None,
        revision: str | None = None,
        metadata: dict[str, Any] | None = None,
    ):
        self._filepath, self.digests = given or filepath, Path(path)
        self._hub_id, self._revision = (None, None) if given else (hub_id, revision)
        self._found: tuple[Path, tuple[str, str] | None] | None = None
        self._reference: CheckpointReference | None = None
        self.metadata = metadata

    @property
    def place(self) -> Place:
        """Where the checkpoint is.

        Raises:
            CheckpointError: if its address has no form that is known.
        """
        return find_place(self._filepath, self._hub_id, self._revision)

    def load(self) -> CheckpointReference:
        """Return the folder with its digests; they are taken once a run.

        Raises:
            CheckpointError: if a file is missing or damaged, or the hub does not give the model.
            RegistryError: if no such version is registered, or its files are not on this machine.
        """
        if self._reference is None:
            folder, named = self._find()
            found = refer_to(folder, self.digests)
            self._reference = replace(found, name=named[0], revision=named[1]) if named else found
        return self._reference

    def unread(self) -> Path | None:
        """Return the folder if `load` will read weights from end to end, None if all digests are remembered.

        Raises:
            CheckpointError: as `load` does.
            RegistryError: as `load` does.
        """
        folder, _ = self._find()
        return folder if unread_bytes(folder, self.digests) else None

    def _find(self) -> tuple[Path, tuple[str, str] | None]:
        """Return the folder, its headers checked, and its name and revision where the folder does not tell them."""
        if self._found is None:
            folder, named = fetch(self.place)
            read_index(folder)
            if strays := list_strays(folder):
                logger.warning("%s: no part of this checkpoint, left out: %s", folder, ", ".join(strays))
            self._found = folder, named
        return self._found

    def save(self, data: CheckpointReference) -> None:
        """Refuse: the checkpoint is an input."""
        raise DatasetError(f"{self._filepath} is an input and is not written by a pipeline")

    def _exists(self) -> bool:
        place = self.place
        return not isinstance(place, Path) or (place / "config.json").is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath, "hub_id": self._hub_id, "revision": self._revision}


def fetch(place: Place) -> tuple[Path, tuple[str, str] | None]:
    """Return the folder of a base model, and its name and revision where the folder does not tell them."""
    if isinstance(place, HubPlace):
        folder = fetch_snapshot(place.hub_id, place.revision)
        return folder, (place.hub_id, folder.name)
    if isinstance(place, RegisteredPlace):
        from moe_compress.registry.versions import find_version

        version = find_version(place.name, place.version, place.alias)
        return version.folder, (place.name, version.version)
    return place, None


def fetch_snapshot(hub_id: str, revision: str | None) -> Path:
    """Return the local snapshot of a model on the hub, downloading what is not there.

    Raises:
        CheckpointError: if the hub cannot be reached or has no such model, and the cache has no snapshot.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=WANTED, ignore_patterns=UNWANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"the hub did not give '{hub_id}' at revision {revision or 'main'} ({first_line}); check hub_id and "
            "revision in globals.yml and your login, or give a local folder as base_model"
        ) from error


def refer_to(folder: Path, digests: Path | None) -> CheckpointReference:
    """Return a reference to a checkpoint folder, reading each weight file once unless its digest is known.

    Raises:
        CheckpointError: if a file is missing, or changes while it is read.
    """
    total = sum(path.stat().st_size for path in weight_paths(folder).values())
    with tqdm(total=total, unit="B", unit_scale=True, desc="digest", delay=_PATIENCE) as bar:
        weights = weight_file_digests(folder, digests, bar.update)
    settings = settings_file_digests(folder)
    return CheckpointReference(
        path=folder,
        name=folder.name,
        weights_digest=join_digests(weights),
        settings_digest=join_digests(settings),
        files={**weights, **settings},
    )
