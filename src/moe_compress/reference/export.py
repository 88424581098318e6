"""Turn a training checkpoint into a model folder that stock transformers loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from moe_compress.errors import DataError
from moe_compress.reference.train import CHECKPOINT, build_model


def load_checkpoint(config: Mapping[str, Any], folder: Path) -> tuple[PreTrainedModel, list[float]]:
    """Load what training has reached so far.

    Args:
        config: The configuration the checkpoint was trained with.
        folder: Where training writes its checkpoint.

    Returns:
        The model in float32, and the loss of every step so far.

    Raises:
        DataError: There is no checkpoint.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        raise DataError(f"no {CHECKPOINT} in {folder}; train first (kedro run --fresh --pipelines=train_reference)")
    state = torch.load(path, map_location="cpu", weights_only=True)
    model = build_model(config, seed=0)
    model.load_state_dict(state["model"])
    return model.eval(), state["losses"]


def export_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, card: str, folder: Path) -> None:
    """Write weights in bfloat16, configuration, tokenizer and card, then put the folder in its place.

    Args:
        model: The trained model; its weights are rounded to bfloat16.
        tokenizer: Its tokenizer.
        card: The model card, Markdown with its YAML header.
        folder: The model folder; replaced if there is one.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=padding, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    _name_every_alias(partial / "config.json")
    (partial / "README.md").write_text(card, encoding="utf-8")
    (partial / "model.safetensors").chmod(0o644)
    _swap(partial, folder)


def _swap(new: Path, folder: Path) -> None:
    """Put the new folder in the old one's place; what is there is always whole."""
    aside = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    new.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)


def _name_every_alias(path: Path) -> None:
    """Write the number of experts under both its names; some engines read the one, some the other."""
    config = json.loads(path.read_text(encoding="utf-8"))
    number = config.get("num_local_experts", config.get("num_experts"))
    config |= {"num_local_experts": number, "num_experts": number}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
