"""How fast a loaded model reads and writes, and how large a checkpoint is, told from its files' headers alone."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from moe_compress.errors import CheckpointError
from moe_compress.types import Speed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_INDEX = "model.safetensors.index.json"
_READ = 128
"""Tokens of each sequence that is read."""
_PROMPT, _WRITTEN = 32, 32
"""Tokens before, and after, the first that is written of a sequence."""
_TURN = 0.2
"""Seconds that each kind of pass has at least in a round."""
_ROUNDS, _FEWEST_ROUNDS = 5, 3
_LONG = 20.0
"""Seconds of timed passes after which the fewest rounds do."""


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


def time_model(model: PreTrainedModel, batch_sizes: Sequence[int]) -> dict[str, Any]:
    """Return how fast a loaded model reads and writes, as `prefill`, `decode` and `yardstick` of a `Throughput`.

    Args:
        model: a loaded causal language model.
        batch_sizes: sequences read, and written, at once.
    """
    reading = [partial(read, model, random_ids(model, size, _READ)) for size in batch_sizes]
    writing = [partial(write, model, random_ids(model, size, _PROMPT)) for size in batch_sizes]
    # All in one loop: however long something else keeps the machine busy, it meets a part of each.
    *seconds, worked = time_in_turns([*reading, *writing, partial(work, model.device)])
    count = len(batch_sizes)
    was_read, was_written = (zip(batch_sizes, part, strict=True) for part in (seconds[:count], seconds[count:]))
    return {
        "prefill": {size: summarise(size * _READ, taken) for size, taken in was_read},
        "decode": {size: summarise(size * _WRITTEN, taken) for size, taken in was_written},
        "yardstick": 1 / min(worked),
    }


def time_in_turns(passes: Sequence[Callable[[], float]]) -> list[list[float]]:
    """Return the seconds of all passes of each kind, which take turns until each kind had about one second.

    Args:
        passes: each runs one pass and returns the seconds that count.
    """
    for run in passes:
        run()  # not timed: libraries choose their kernels, and memory is had for the first time
    seconds: list[list[float]] = [[] for _ in passes]
    for number in range(1, _ROUNDS + 1):
        for run, taken in zip(passes, seconds, strict=True):
            before = len(taken)
            while sum(taken[before:]) < _TURN:
                taken.append(run())
        if number >= _FEWEST_ROUNDS and sum(map(sum, seconds)) > _LONG:
            break
    return seconds


def summarise(num_tokens: int, seconds: Sequence[float]) -> Speed:
    """Return the speed of passes over as many tokens each.

    What else a machine does only ever takes time, so the fastest pass tells most of the model, and how much slower
    the median was tells of the machine.
    """
    fastest = min(seconds)
    return Speed(num_tokens / fastest, statistics.median(seconds) / fastest - 1)


@torch.inference_mode()
def read(model: PreTrainedModel, ids_BS: torch.Tensor) -> float:
    """Return the seconds of one forward pass over prompts."""
    start = _now(ids_BS)
    model(input_ids=ids_BS, use_cache=False, logits_to_keep=1)
    return _now(ids_BS) - start


@torch.inference_mode()
def write(model: PreTrainedModel, ids_BS: torch.Tensor, steps: int = _WRITTEN) -> float:
    """Return the seconds from the first token written after prompts to the last, one after the other with a cache.

    Args:
        model: a loaded causal language model.
        ids_BS: the prompts.
        steps: tokens written after the first.
    """
    from transformers import GenerationConfig

    moments: list[float] = []

    def note(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        """Note when a token was written; no text ends here."""
        moments.append(_now(ids))
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    settings = GenerationConfig(
        do_sample=False, min_new_tokens=1 + steps, max_new_tokens=1 + steps, pad_token_id=0, eos_token_id=None
    )
    given = {"attention_mask": torch.ones_like(ids_BS), "generation_config": settings}
    model.generate(ids_BS, **given, stopping_criteria=[note])
    return moments[-1] - moments[0]


@torch.inference_mode()
def work(device: torch.device) -> float:
    """Return the seconds of work that is the same beside every model, and so tells what the machine had to give."""
    # Large enough for a CPU to divide among its threads, as it does a model's work.
    weights = torch.ones(256, 256, device=device)
    start, result = _now(weights), weights
    for _ in range(50):
        result = torch.tanh(result @ weights)
    return _now(result) - start


def random_ids(model: PreTrainedModel, batch_size: int, length: int, seed: int = 0) -> torch.Tensor:
    """Return prompts of tokens chosen at random, where the model reads."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (batch_size, length), generator=generator).to(model.device)


def _now(tensor: torch.Tensor) -> float:
    """Return the clock's reading once all that was asked of a tensor's device is done."""
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()
