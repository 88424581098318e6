"""Are the numbers that decide where tokens go numbers? A router's weights are small enough to read them all."""

from collections.abc import Callable
from math import prod

import numpy as np
from numpy.typing import NDArray

from moe_compress.checkpoint.copying import read_bytes
from moe_compress.checkpoint.files import SourceFiles
from moe_compress.checkpoint.index import CheckpointIndex
from moe_compress.errors import CheckpointError
from moe_compress.types import TensorInfo, TensorMap

_BLOCK_BYTES = 4 << 20  # a multiple of every element's size


def _above(limit: int, sign: int) -> Callable[[NDArray[np.unsignedinteger]], NDArray[np.bool_]]:
    """Return a test of bits: whether what is left without the sign is at least `limit`."""
    return lambda bits: (bits & (sign - 1)) >= limit


_IS_NO_NUMBER = {
    "F64": ("<u8", _above(0x7FF << 52, 1 << 63)),
    "F32": ("<u4", _above(0xFF << 23, 1 << 31)),
    "F16": ("<u2", _above(0x1F << 10, 1 << 15)),
    "BF16": ("<u2", _above(0xFF << 7, 1 << 15)),
    "F8_E5M2": ("u1", _above(0x1F << 2, 1 << 7)),
    "F8_E4M3": ("u1", _above(0x7F, 1 << 7)),  # has no infinity, and one NaN
    "F8_E4M3FNUZ": ("u1", lambda bits: bits == 0x80),
    "F8_E5M2FNUZ": ("u1", lambda bits: bits == 0x80),
    "F8_E8M0": ("u1", lambda bits: bits == 0xFF),
}


def check_routers(index: CheckpointIndex, tensor_map: TensorMap) -> None:
    """Check that every router tensor holds finite numbers; reads these tensors and no others.

    Args:
        index: the checkpoint.
        tensor_map: which of its tensors are the routers'.

    Raises:
        CheckpointError: if one holds NaN or infinity, or its file ends too early.
    """
    with SourceFiles(index.folder) as files:
        for name, info in index.tensors.items():
            if tensor_map.roles[name].is_router:
                _check_router(info, files)


def _check_router(info: TensorInfo, files: SourceFiles) -> None:
    if info.dtype not in _IS_NO_NUMBER:
        return
    element, is_no_number = _IS_NO_NUMBER[info.dtype]
    for offset in range(0, info.num_bytes, _BLOCK_BYTES):
        length = min(_BLOCK_BYTES, info.num_bytes - offset)
        content = read_bytes(files.descriptor(info.file), info.start + offset, length, info.file)
        wrong = np.flatnonzero(is_no_number(np.frombuffer(content, element)))
        if len(wrong):
            first = int(wrong[0]) + offset // np.dtype(element).itemsize
            row = first // max(prod(info.shape[1:]), 1)
            raise CheckpointError(
                f"the router's tensor '{info.name}' in {info.file} holds NaN or infinity at row {row}, so that "
                "nothing can be said about where tokens go; fetch the checkpoint again"
            )
