"""What the base model is now, told by digests: of a folder, a registered version, or a hub revision unread."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moe_compress.checkpoint.digest import join_digests
from moe_compress.checkpoint.files import CONFIG, travels
from moe_compress.datasets.checkpoint import UNWANTED, WANTED, CheckpointDataset
from moe_compress.datasets.places import HubPlace, RegisteredPlace
from moe_compress.errors import CheckpointError
from moe_compress.registry.versions import RegisteredVersion, find_version, read_json_tag

_SHARD = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


@dataclass(frozen=True)
class BaseFacts:
    """A base model's identity.

    Attributes:
        name: as people call it.
        revision: commit on the hub, version in the registry, or `local`.
        weights_digest: sha256 of its weights, as `weights_digest` takes it.
        settings_digest: sha256 of what lies beside them; None where a hub's differ from all that are known.
        changed_settings: the files of which that is so.
    """

    name: str
    revision: str
    weights_digest: str
    settings_digest: str | None
    changed_settings: tuple[str, ...] = ()


def inspect_base(dataset: CheckpointDataset, versions: Sequence[RegisteredVersion]) -> BaseFacts:
    """Return what the base model is now; of a model on the hub nothing is downloaded.

    Args:
        dataset: the base model of the catalog.
        versions: what was compressed from it before, which tells what its settings were.

    Raises:
        MoeCompressError: if it is not there.
    """
    place = dataset.place
    if isinstance(place, HubPlace):
        return _inspect_hub(place, versions)
    if isinstance(place, RegisteredPlace):
        version = find_version(place.name, place.version, place.alias)
        digests = [version.tags.get(f"candidate_{part}_digest") for part in ("weights", "settings")]
        if not version.is_here and digests[0] and digests[1]:
            return BaseFacts(version.name, version.version, digests[0], digests[1])
    found = dataset.load()
    return BaseFacts(found.name, found.revision, found.weights_digest, found.settings_digest)


def _inspect_hub(place: HubPlace, versions: Sequence[RegisteredVersion]) -> BaseFacts:
    info = _ask_hub(place)
    files = {file.rfilename: file for file in info.siblings or ()}
    names = _wanted(files)
    shards = [name for name in names if name.endswith(".safetensors")]
    weights = {name: _sha256(files[name], place) for name in shards if _SHARD.fullmatch(name)} or {
        name: _sha256(files[name], place) for name in shards
    }
    if not weights:
        raise CheckpointError(f"'{place.hub_id}' at {place.revision or 'main'} has no safetensors files on the hub")
    settings = {name: files[name] for name in names if name == CONFIG or travels(name)}
    changed: list[tuple[str, ...]] = []
    for version in versions:
        recorded = read_json_tag(version.tags.get("base_settings_files", "")) or {}
        changed.append(_changed(settings, recorded))
        if recorded and not changed[-1]:
            digest = version.tags["base_settings_digest"]
            return BaseFacts(place.hub_id, str(info.sha), join_digests(weights), digest)
    named = changed[0] if changed else tuple(sorted(settings))
    return BaseFacts(place.hub_id, str(info.sha), join_digests(weights), None, named)


def _ask_hub(place: HubPlace) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return HfApi().model_info(place.hub_id, revision=place.revision, files_metadata=True)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError) as error:
        first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise CheckpointError(
            f"the hub does not tell of '{place.hub_id}' at revision {place.revision or 'main'} ({first_line}); "
            "check the name, your login (HF_TOKEN) and the network, or check against a folder (--base)"
        ) from error


def _wanted(names: Iterable[str]) -> list[str]:
    """Return the files that a run would download."""
    from huggingface_hub.utils._paths import filter_repo_objects

    return sorted(filter_repo_objects(names, allow_patterns=WANTED, ignore_patterns=UNWANTED))


def _sha256(file: Any, place: HubPlace) -> str:
    if file.lfs is None:
        raise CheckpointError(
            f"the hub tells no sha256 of {file.rfilename} of '{place.hub_id}'; check against a folder (--base)"
        )
    return str(file.lfs.sha256)


def _changed(files: Mapping[str, Any], recorded: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Return the names of files that are not what they were: by sha256 where the hub tells it, else by git's id."""

    def is_same(name: str) -> bool:
        if name not in files or name not in recorded:
            return False
        sha256, blob_id = recorded[name]
        file = files[name]
        return bool(file.lfs.sha256 == sha256 if file.lfs else file.blob_id == blob_id)

    return tuple(sorted(name for name in {*files, *recorded} if not is_same(name)))
