"""How fast a loaded model reads, and how large a checkpoint is, told from its files' headers alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moe_compress.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"


class CheckpointSize(NamedTuple):
    """A checkpoint's size.

    Attributes:
        num_parameters: numbers stored in its tensors; scales of a quantised checkpoint count too.
        num_bytes: bytes of its weight files.
    """

    num_parameters: int
    num_bytes: int


def measure_size(folder: Path | str) -> CheckpointSize:
    """Return the size of a checkpoint from the headers of its safetensors files; no tensor is read.

    Raises:
        CheckpointError: if the folder has no safetensors file, or one of them is missing or damaged.
    """
    files = _weight_files(Path(folder))
    return CheckpointSize(sum(map(_count_parameters, files)), sum(file.stat().st_size for file in files))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files stock loaders read: those of the index, else every safetensors file."""
    index = folder / _INDEX
    if index.is_file():
        names = set(json.loads(index.read_text())["weight_map"].values())
        files = [folder / name for name in sorted(names)]
    else:
        files = sorted(folder.glob("*.safetensors"))
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        lacking = missing[0] if missing else "any safetensors file"
        raise CheckpointError(f"{folder} lacks {lacking}; give the folder of a whole checkpoint")
    return files


def _count_parameters(file: Path) -> int:
    return sum(prod(tensor["shape"]) for tensor in _read_header(file).values())


def _read_header(file: Path) -> dict[str, Any]:
    """Return name -> dtype and shape; the header's length stands in the file's first 8 bytes."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        text = stream.read(min(length, file.stat().st_size))
    try:
        header: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"the header of {file} is damaged ({error}); copy the file again") from error
    header.pop("__metadata__", None)
    return header


def measure_prefill_speeds(
    models: Sequence[PreTrainedModel], *, batch_size: int = 8, length: int = 128, repeats: int = 9, seed: int = 0
) -> list[float]:
    """Return each model's tokens read per second: the median forward pass after one that is not timed.

    The models take turns, so that whatever else the machine does meets all of them alike.

    Args:
        models: loaded causal language models with the same vocabulary.
        batch_size: sequences read at once.
        length: tokens of each, chosen at random.
        repeats: timed passes.
        seed: of the random tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    vocabulary = models[0].config.get_text_config().vocab_size
    ids_BS = torch.randint(vocabulary, (batch_size, length), generator=generator)
    with torch.inference_mode():
        rounds = [[_time_prefill(model, ids_BS.to(model.device)) for model in models] for _ in range(repeats + 1)]
    return [batch_size * length / statistics.median(seconds) for seconds in zip(*rounds[1:], strict=True)]


def _time_prefill(model: PreTrainedModel, ids_BS: torch.Tensor) -> float:
    start = time.perf_counter()
    model(input_ids=ids_BS, use_cache=False, logits_to_keep=1)
    if ids_BS.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
