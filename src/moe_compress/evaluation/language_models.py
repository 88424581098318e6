"""The harness's model classes with one progress bar, and texts that do not fit refused instead of cut."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM

from moe_compress.errors import CheckpointError, DataError
from moe_compress.evaluation.loading import StockModel, quiet


class _Whole:
    """What both classes do differently from the harness's own, which cut a text on the left to make it fit."""

    max_length: int
    max_gen_toks: int
    tokenizer: Any
    leaves_out_too_long = False
    """Whether a prompt that leaves no room for an answer gets an empty one, instead of ending the evaluation."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[misc]
        return answers

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, **options: Any
    ) -> list[tuple[float, bool]]:
        # The last token of a choice is predicted, not read.
        longest = max(len(context) + len(choice) - 1 for _, context, choice in requests)
        if longest > self.max_length:
            raise DataError(
                f"a question with its examples is {longest} tokens long, but the model reads {self.max_length} at "
                "once; lower the benchmark's num_fewshot"
            )
        scored: list[tuple[float, bool]] = super()._loglikelihood_tokens(  # type: ignore[misc]
            requests, disable_tqdm=_unwatched(), **options
        )
        return scored

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        prompts = [request.args[0] for request in requests]
        lengths = map(len, self.tokenizer(prompts, verbose=False)["input_ids"])
        rooms = [self.max_length - length for length in lengths]
        if min(rooms) < 1 and not self.leaves_out_too_long:
            raise DataError(
                f"a question with its examples is {self.max_length - min(rooms)} tokens long, but the model reads "
                f"and writes {self.max_length} in all; lower the benchmark's num_fewshot"
            )
        fitting = [(request, room) for request, room in zip(requests, rooms, strict=True) if room >= 1]
        for request, room in fitting:
            settings = request.args[1]
            settings["max_gen_toks"] = min(settings.get("max_gen_toks", self.max_gen_toks), round_down(room))
        written: list[str] = []
        if fitting:
            written = super().generate_until([request for request, _ in fitting], _unwatched())  # type: ignore[misc]
        texts = iter(written)
        return [next(texts) if room >= 1 else "" for room in rooms]


class WholeHFLM(_Whole, HFLM):  # type: ignore[misc]
    """Transformers, run by the harness."""


def open_transformers(stock: StockModel, batch_size: int) -> WholeHFLM:
    """Return a loaded model as the harness runs it."""
    with quiet("lm_eval", "transformers"):
        return WholeHFLM(
            pretrained=stock.model, tokenizer=stock.tokenizer, batch_size=batch_size, softmax_dtype="float32"
        )


def open_vllm(folder: Path | str, dtype: str, seed: int) -> Any:
    """Return a checkpoint folder as vLLM serves it; the engine and its GPU memory go with the object.

    Raises:
        CheckpointError: if vLLM does not load it.
    """
    from lm_eval.models.vllm_causallms import VLLM

    whole = type("WholeVLLM", (_Whole, VLLM), {})
    try:
        return whole(pretrained=str(folder), dtype=dtype, seed=seed, trust_remote_code=False)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"vLLM does not load {folder}: {reason}; evaluate with evaluate.backend hf, or use a vLLM that knows "
            "the model"
        ) from error


def round_down(room: int) -> int:
    """Return a generation limit within the room a prompt leaves; few different ones, since those batch together."""
    return room // 64 * 64 if room >= 64 else 1 << (room.bit_length() - 1)


def _unwatched() -> bool:
    return not sys.stderr.isatty()
