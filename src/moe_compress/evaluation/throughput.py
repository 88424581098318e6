"""How fast a loaded model reads and writes, and how large a checkpoint is, told from its files' headers alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
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


def time_prefill(
    model: PreTrainedModel, batch_size: int, *, length: int = 128, repeats: int = 5, seed: int = 0
) -> float:
    """Return tokens read per second: of the median forward pass after one that is not timed.

    Args:
        model: a loaded causal language model.
        batch_size: sequences read at once.
        length: tokens of each, chosen at random.
        repeats: timed passes.
        seed: of the random tokens.
    """
    ids_BS = _random_ids(model, batch_size, length, seed)
    return (
        batch_size
        * length
        / _median_seconds(lambda: model(input_ids=ids_BS, use_cache=False, logits_to_keep=1), ids_BS, repeats)
    )


def time_decode(
    model: PreTrainedModel, batch_size: int, *, length: int = 32, steps: int = 32, repeats: int = 3, seed: int = 0
) -> float:
    """Return tokens written per second, one after the other with a cache; reading the prompt does not count.

    Args:
        model: a loaded causal language model.
        batch_size: sequences written at once.
        length: tokens of each prompt, chosen at random.
        steps: tokens written after the first.
        repeats: timed runs.
        seed: of the random tokens.
    """
    from transformers import GenerationConfig

    ids_BS = _random_ids(model, batch_size, length, seed)

    def write(tokens: int) -> float:
        settings = GenerationConfig(
            do_sample=False, min_new_tokens=tokens, max_new_tokens=tokens, pad_token_id=0, eos_token_id=None
        )
        given = {"attention_mask": torch.ones_like(ids_BS), "generation_config": settings}
        return _median_seconds(lambda: model.generate(ids_BS, **given), ids_BS, repeats)

    seconds = write(1 + steps) - write(1)
    # A machine that is busy elsewhere may take longer for the first token alone than for all: that is no speed.
    return batch_size * steps / seconds if seconds > 0 else float("nan")


def _random_ids(model: PreTrainedModel, batch_size: int, length: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (batch_size, length), generator=generator).to(model.device)


@torch.inference_mode()
def _median_seconds(run: Callable[[], object], ids_BS: torch.Tensor, repeats: int) -> float:
    run()
    return statistics.median(_seconds(run, ids_BS) for _ in range(repeats))


def _seconds(run: Callable[[], object], ids_BS: torch.Tensor) -> float:
    start = time.perf_counter()
    run()
    if ids_BS.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start
