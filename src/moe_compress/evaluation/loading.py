"""Load a checkpoint folder the way anybody would, with stock transformers where it can; tell what did not fit."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from moe_compress.errors import CheckpointError, ParameterError
from moe_compress.families.conversion import is_predictor, no_loading_bar
from moe_compress.loading import load_model, load_tokenizer
from moe_compress.quiet import hold_back

DTYPES = ("auto", "float32", "bfloat16", "float16")


class StockModel(NamedTuple):
    """A checkpoint loaded by transformers.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        missing: parameters the checkpoint lacks; transformers filled them with random numbers.
        unexpected: tensors of the checkpoint that the model has no place for; layers for multi-token prediction,
            which only some engines build, are not counted.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def release_memory() -> None:
    """Give back the memory of models that nothing refers to any more, that of GPUs too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def load_stock(folder: Path | str, device: str = "auto", dtype: str = "float32") -> StockModel:
    """Load a checkpoint folder offline, with no code of this package in the way of what stock transformers loads.

    Layers with different numbers of experts are no stock checkpoint; `moe_compress.load_model` builds them. Of the
    checkpoint's generation config only its special tokens are kept.

    Args:
        folder: a folder with `config.json`, safetensors files and a tokenizer.
        device: `cpu`, `cuda:0`, ...; `auto` spreads over the GPUs there are, else uses the CPU.
        dtype: what to compute in: `float32`, `bfloat16`, `float16`, or `auto` for the checkpoint's own.

    Raises:
        CheckpointError: if the folder does not load.
        ParameterError: if the dtype is none of these.
    """
    if dtype not in DTYPES:
        raise ParameterError(
            f"no dtype '{dtype}' to evaluate in; choose one of {', '.join(DTYPES)} (evaluate.dtype)"
        )
    if not (Path(folder) / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; give the folder of a whole checkpoint")
    place = "cpu" if device == "auto" and not torch.cuda.is_available() else device
    try:
        with quiet("transformers"):
            model, info = load_model(
                folder, dtype=dtype, device_map=place, local_files_only=True, output_loading_info=True
            )
            tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]  # some of their messages are pages long
        raise CheckpointError(
            f"transformers does not load {folder}: {reason}; check config.json against the weight files"
        ) from error
    model.generation_config = _without_habits(model.generation_config)
    unexpected = sorted(name for name in info["unexpected_keys"] if not is_predictor(name, model.config))
    return StockModel(model.eval(), tokenizer, tuple(sorted(info["missing_keys"])), tuple(unexpected))


def _without_habits(own: GenerationConfig | None) -> GenerationConfig:
    """Return a generation config with the special tokens alone.

    Transformers fills what a call leaves open from the checkpoint's own: its penalties would change greedy texts
    and hide loops, and its limits would stand before a benchmark's.
    """
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return GenerationConfig(**{name: getattr(own, name, None) for name in names})


@contextmanager
def quiet(*packages: str) -> Iterator[None]:
    """Keep the packages' loggers to errors, and transformers' progress bars off, inside the block."""
    with hold_back(*packages), no_loading_bar():
        yield
