"""The safetensors header: read with every claim checked against the file, and written."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from reprlib import repr as shorten
from typing import Any

from moe_compress.errors import CheckpointError
from moe_compress.types import TensorInfo

DTYPE_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4", "F4_E2M1"), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}

_LENGTH_BYTES = 8
_MAX_JSON_BYTES = 100_000_000  # the reference implementation's limit of a header
_MAX_NAME = 512  # characters; the longest names in use are a quarter of it
_MAX_AXES = 64  # torch's limit
_MAX_SIZE = 1 << 48  # elements or bytes, far above any file
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        CheckpointError: if it is no JSON object or absurdly large.
    """
    with path.open("rb") as stream:
        text = stream.read(_MAX_JSON_BYTES + 1)
    if len(text) > _MAX_JSON_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_JSON_BYTES} bytes; fetch the checkpoint again")
    return load_object(text, str(path))


def load_object(text: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object and refuse what two readers could understand differently.

    Args:
        text: UTF-8 bytes.
        where: how to name their file in an error.

    Raises:
        CheckpointError: if it is no JSON object, too deep, or an object repeats a key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} holds the key {repeated[:120]!r} twice; fetch the checkpoint again")
        return value

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
        if re.search(rb"\\u[dD][89a-fA-F]", text):  # half a character could be read and not be written again
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}); fetch the checkpoint again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} is not a JSON object; fetch the checkpoint again")
    return value


def read_header(path: Path, name: str) -> dict[str, TensorInfo]:
    """Read one safetensors file's header, no weights.

    Args:
        path: the file to open.
        name: its name in the checkpoint folder (a link's name, not its target's).

    Returns:
        Tensor name -> where and what it is.

    Raises:
        CheckpointError: if the header is damaged or claims bytes the file does not have.
    """
    with path.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if not 2 <= length <= min(_MAX_JSON_BYTES, size - _LENGTH_BYTES):
            raise CheckpointError(
                f"{name} has {size} bytes and claims a header of {length}; it is cut short or no safetensors "
                "file, fetch it again"
            )
        entries = load_object(stream.read(length), f"the header of {name}")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(
            f"the header of {name} has the __metadata__ {shorten(metadata)}, which maps no strings to strings; "
            "fetch it again"
        )
    data_start = _LENGTH_BYTES + length
    infos = {tensor: _read_entry(name, data_start, tensor, entry) for tensor, entry in entries.items()}
    _check_offsets(name, infos.values(), data_start, size)
    return infos


def _read_entry(file: str, data_start: int, tensor: str, entry: Any) -> TensorInfo:
    """Check one header entry and return it with an absolute offset."""
    if not 0 < len(tensor) <= _MAX_NAME or _CONTROL.search(tensor):
        raise CheckpointError(
            f"a tensor in {file} is named {shorten(tensor)}, and a name has 1 to {_MAX_NAME} printable characters; "
            "do not use this checkpoint"
        )
    if not isinstance(entry, dict) or entry.keys() != _ENTRY_KEYS or not _is_dtype(entry["dtype"]):
        raise CheckpointError(
            f"tensor '{tensor}' in {file} is described by {shorten(entry)}, which needs a known dtype, "
            "a shape and data_offsets; fetch the file again"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"tensor '{tensor}' in {file} has shape {shorten(shape)} and data_offsets {shorten(offsets)}, "
            "which are not sizes; fetch the file again"
        )
    num_bytes = offsets[1] - offsets[0]
    if prod(shape) * DTYPE_BITS[entry["dtype"]] != num_bytes * 8:
        raise CheckpointError(
            f"tensor '{tensor}' in {file} is {entry['dtype']} {shape} but has {num_bytes} bytes; "
            "fetch the file again"
        )
    return TensorInfo(tensor, entry["dtype"], tuple(shape), file, data_start + offsets[0], num_bytes)


def _is_dtype(value: Any) -> bool:
    return isinstance(value, str) and value in DTYPE_BITS


def _are_sizes(value: Any) -> bool:
    """Whether a value is a list of not too many integers, none negative or absurd."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_AXES
        and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in value)
    )


def _check_offsets(file: str, infos: Iterable[TensorInfo], data_start: int, size: int) -> None:
    """Check that the tensors fill the file: none overlap, no bytes are unclaimed, none are missing."""
    end = data_start
    for info in sorted(infos, key=lambda info: (info.start, info.num_bytes)):
        if info.start != end:
            raise CheckpointError(
                f"tensor '{info.name}' in {file} starts at byte {info.start}, the one before it ends at "
                f"{end}; tensors must neither overlap nor leave holes, fetch the file again"
            )
        end += info.num_bytes
    if end != size:
        raise CheckpointError(
            f"{file} has {size} bytes, its tensors need {end}; it is damaged or still downloading, fetch it again"
        )


def write_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]]) -> bytes:
    """Return the header of a file that holds the tensors one after the other.

    Args:
        tensors: (name, dtype, shape, bytes) in file order.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, dtype, shape, num_bytes in tensors:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + num_bytes]}
        end += num_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text
