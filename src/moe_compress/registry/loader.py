"""What MLflow calls to load a registered checkpoint: prompts in, generated text out."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

DEFAULT_NEW_TOKENS = 64


class TextGenerator:
    """A checkpoint folder that generates greedily; model and tokenizer are loaded when first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        from moe_compress.loading import load_tokenizer

        return load_tokenizer(self.folder)

    @cached_property
    def model(self) -> Any:
        """The checkpoint's model in the dtype it is stored in, ready to generate."""
        from moe_compress.loading import load_model

        return load_model(self.folder, dtype="auto", local_files_only=True).eval()

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Return what the model writes after each prompt.

        Args:
            model_input: a prompt, a list of them, or a table whose first column holds them.
            params: `max_new_tokens` per prompt, 64 if not given.
        """
        new_tokens = int((params or {}).get("max_new_tokens", DEFAULT_NEW_TOKENS))
        return [self._continue(prompt, new_tokens) for prompt in _prompts(model_input)]

    def _continue(self, prompt: str, new_tokens: int) -> str:
        # One prompt at a time: padding would need a pad token, which a base model may not have.
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        start = inputs["input_ids"].shape[1]
        written = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
        )
        return str(self.tokenizer.decode(written[0, start:], skip_special_tokens=True))


def _prompts(model_input: Any) -> list[str]:
    if isinstance(model_input, str):
        return [model_input]
    if hasattr(model_input, "iloc") and getattr(model_input, "ndim", 1) == 2:
        model_input = model_input.iloc[:, 0]
    return [str(prompt) for prompt in model_input]


def _load_pyfunc(path: str) -> TextGenerator:
    """Return the model MLflow asks for by this very name; no weight is read yet."""
    return TextGenerator(Path(path))
