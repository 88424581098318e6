"""Collect the statistics of a model that fits in memory: one plain forward pass over the demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_compress.collection.observe import observe
from moe_compress.collection.sums import RoutingSums
from moe_compress.types import Demonstrations, ExpertStatistics, MoELayout, Provenance

logger = logging.getLogger(__name__)


def load_resident(folder: Path, device: str, dtype: str) -> tuple[Any, Any]:
    """Return (model, tokenizer) of a local checkpoint, ready to run without gradients.

    Args:
        folder: the checkpoint.
        device: a torch device, or `auto` for the GPU when there is one.
        dtype: a torch dtype's name, or `auto` for the checkpoint's own.
    """
    where = device if device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(where).eval(), tokenizer


def encode(
    texts: Sequence[str], tokenizer: Any, max_tokens: int, batch_size: int
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield right-padded batches `input_ids` and `attention_mask` `[B, S]`, longest texts first.

    Texts are cut at `max_tokens`. Longest first, so that a batch too large for the device fails at once.
    """
    ids = sorted(
        (tokenizer(text, verbose=False)["input_ids"][:max_tokens] for text in texts), key=len, reverse=True
    )
    for start in range(0, len(ids), batch_size):
        rows = ids[start : start + batch_size]
        input_ids_BS = torch.zeros(len(rows), len(rows[0]), dtype=torch.long)
        mask_BS = torch.zeros_like(input_ids_BS)
        for row, tokens in enumerate(rows):
            input_ids_BS[row, : len(tokens)] = torch.tensor(tokens)
            mask_BS[row, : len(tokens)] = 1
        yield {"input_ids": input_ids_BS, "attention_mask": mask_BS}


def collect_resident(
    model: Any,
    tokenizer: Any,
    demonstrations: Demonstrations,
    layout: MoELayout,
    max_tokens: int,
    batch_size: int,
    provenance: Provenance,
) -> ExpertStatistics:
    """Return one domain's statistics from one forward pass, every sum at once.

    Args:
        model: a loaded transformers model.
        tokenizer: its tokenizer.
        demonstrations: the texts to run; prompt and response tokens both count.
        layout: the model's layout, as read from its files.
        max_tokens: longer texts are cut here, or at the model's context.
        batch_size: sequences per forward pass.
        provenance: lineage to keep with the sums.

    Raises:
        UnsupportedModelError: if the family cannot be observed.
        StatisticsError: if an invariant of the sums is broken.
    """
    sums = RoutingSums(layout)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", max_tokens)
    max_tokens = min(max_tokens, context)
    batches = list(encode(demonstrations.texts, tokenizer, max_tokens, batch_size))
    num_cut = sum(int(batch["attention_mask"].sum(dim=1).eq(max_tokens).sum()) for batch in batches)
    if num_cut:
        logger.info(
            "%d of %d demonstrations reach %d tokens and are cut there", num_cut, len(demonstrations), max_tokens
        )
    total = sum(int(batch["attention_mask"].sum()) for batch in batches)
    device = next(model.parameters()).device
    with (
        torch.inference_mode(),
        observe(model, sums.add) as set_mask,
        tqdm(total=total, unit="tok", desc=f"collect {demonstrations.domain}", unit_scale=True) as progress,
    ):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            set_mask(inputs["attention_mask"])
            # The head's logits are not needed, only what the layers do.
            model.base_model(**inputs, use_cache=False)
            progress.update(int(batch["attention_mask"].sum()))
    return ExpertStatistics(demonstrations.domain, sums.layout, sums.as_arrays(), total, provenance)
