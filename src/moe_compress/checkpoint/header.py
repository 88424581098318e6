"""The safetensors header: read with every claim checked against the file, and written."""

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
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
_MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


def load_json(text: bytes, where: str) -> Any:
    """Parse JSON and refuse what two readers could understand differently.

    Args:
        text: UTF-8 bytes.
        where: how to name their file in an error.

    Raises:
        CheckpointError: if it is no JSON, too deep, or an object repeats a key.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{where} holds the key '{repeated}' twice; fetch the checkpoint again")
        return value

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} is not valid JSON ({error}); fetch the checkpoint again") from error


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
        if not 2 <= length <= min(_MAX_HEADER_BYTES, size - _LENGTH_BYTES):
            raise CheckpointError(
                f"{name} has {size} bytes and claims a header of {length}; it is cut short or no safetensors "
                "file, fetch it again"
            )
        entries = load_json(stream.read(length), f"the header of {name}")
    if not isinstance(entries, dict):
        raise CheckpointError(f"the header of {name} is not a JSON object; fetch it again")
    entries.pop("__metadata__", None)
    data_start = _LENGTH_BYTES + length
    infos = {tensor: _read_entry(name, data_start, tensor, entry) for tensor, entry in entries.items()}
    _check_offsets(name, infos.values(), data_start, size)
    return infos


def _read_entry(file: str, data_start: int, tensor: str, entry: Any) -> TensorInfo:
    """Check one header entry and return it with an absolute offset."""
    if not isinstance(entry, dict) or set(entry) != _ENTRY_KEYS or str(entry["dtype"]) not in DTYPE_BITS:
        raise CheckpointError(
            f"tensor '{tensor}' in {file} is described by {str(entry)[:80]}, which needs a known dtype, "
            "a shape and data_offsets; fetch the file again"
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(
            f"tensor '{tensor}' in {file} has shape {str(shape)[:40]} and data_offsets {str(offsets)[:40]}, "
            "which are not sizes; fetch the file again"
        )
    num_bytes = offsets[1] - offsets[0]
    if prod(shape) * DTYPE_BITS[entry["dtype"]] != num_bytes * 8:
        raise CheckpointError(
            f"tensor '{tensor}' in {file} is {entry['dtype']} {shape} but has {num_bytes} bytes; "
            "fetch the file again"
        )
    return TensorInfo(tensor, entry["dtype"], tuple(shape), file, data_start + offsets[0], num_bytes)


def _are_sizes(value: Any) -> bool:
    """Whether a value is a list of integers, none negative."""
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


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
