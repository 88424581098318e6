"""A checkpoint folder known from its headers: names, dtypes, shapes and places, no weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from moe_compress.checkpoint.files import CONFIG, INDEX_FILE, SINGLE_FILE, Stamp, resolve_file, stamp_file
from moe_compress.checkpoint.header import read_header, read_json
from moe_compress.errors import CheckpointError
from moe_compress.types import TensorInfo

_MAX_LEVELS = 32  # of a config; those in use have eight


@dataclass(frozen=True)
class CheckpointIndex:
    """What a checkpoint folder holds.

    Attributes:
        folder: the folder.
        config: its `config.json`.
        tensors: tensor name -> where and what it is, in the order they lie in the files.
        stamps: weight file -> what tells later whether it was changed.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    stamps: Mapping[str, Stamp] = field(default_factory=dict)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape."""
        return {name: info.shape for name, info in self.tensors.items()}


def read_index(folder: Path) -> CheckpointIndex:
    """Return a checkpoint's config and tensors; reads headers only.

    Raises:
        CheckpointError: if a file is missing, damaged or outside the folder, or index and files disagree.
    """
    config = read_config(folder)
    stamps = {file: stamp_file(resolve_file(folder, file)) for file in list_weight_files(folder)}
    return CheckpointIndex(folder, config, read_tensors(folder), stamps)


def read_config(folder: Path) -> dict[str, Any]:
    """Return a checkpoint's `config.json`.

    Raises:
        CheckpointError: if it is missing, not a JSON object, or nested absurdly deep.
    """
    config = read_json(resolve_file(folder, CONFIG))
    if _is_deeper(config, _MAX_LEVELS):
        raise CheckpointError(
            f"{folder / CONFIG} nests values more than {_MAX_LEVELS} levels deep; fetch the checkpoint again"
        )
    return config


def _is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _is_deeper(part, levels - 1) for part in (value.values() if isinstance(value, dict) else value)
    )


def list_weight_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the safetensors files that make up a checkpoint, sorted.

    Raises:
        CheckpointError: if there are none or the index is damaged.
    """
    return tuple(sorted(_list_shards(folder)))


def list_strays(folder: Path) -> tuple[str, ...]:
    """Return the names of the safetensors files that are in the folder and no part of the checkpoint, sorted.

    Raises:
        CheckpointError: if there are no weights or the index is damaged.
    """
    present = {path.name for path in folder.glob("*.safetensors")}
    return tuple(sorted(present - _list_shards(folder).keys()))


def read_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of a checkpoint by name, in the order they lie in its files.

    Raises:
        CheckpointError: if a file is missing, damaged or outside the folder, or index and files disagree.
    """
    tensors: dict[str, TensorInfo] = {}
    for file, names in sorted(_list_shards(folder).items()):
        found = read_header(resolve_file(folder, file), file)
        if names is not None and names != found.keys():
            example = sorted(names ^ found.keys())[0]
            raise CheckpointError(
                f"{folder / INDEX_FILE} and {file} disagree about {len(names ^ found.keys())} tensors, "
                f"first {example[:120]!r}; fetch both again"
            )
        tensors.update(sorted(found.items(), key=lambda item: item[1].start))
    return tensors


def _list_shards(folder: Path) -> dict[str, set[str] | None]:
    """Return file -> names the index says it holds, None without an index; a lone file wins, as in loaders."""
    if (folder / SINGLE_FILE).is_file():
        return {SINGLE_FILE: None}
    if not (folder / INDEX_FILE).is_file():
        raise CheckpointError(
            f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}; give a folder with safetensors weights"
        )
    weight_map = read_json(resolve_file(folder, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX_FILE} has no 'weight_map'; fetch the checkpoint again")
    shards: dict[str, set[str] | None] = {}
    for tensor, file in weight_map.items():
        if not isinstance(file, str) or not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{folder / INDEX_FILE} puts tensor {tensor[:120]!r} in {shorten(file)}, which is no safetensors "
                "file; fetch the checkpoint again"
            )
        names = shards.setdefault(file, set())
        assert names is not None
        names.add(tensor)
    return shards
