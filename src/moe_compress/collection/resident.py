"""Collect the statistics of a model that fits in memory: one plain forward pass over the demonstrations."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_compress.collection.batches import encode
from moe_compress.collection.observe import observe
from moe_compress.collection.sums import start_sums
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


def collect_resident(
    model: Any,
    tokenizer: Any,
    demonstrations: Demonstrations,
    layout: MoELayout,
    max_tokens: int,
    batch_size: int,
    provenance: Provenance,
    requests: Collection[str] = (),
    embedding_tokens: int = 2048,
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
        requests: statistics to collect besides those every collection has.
        embedding_tokens: tokens that all experts run on, if `embedding` is among them.

    Raises:
        UnsupportedModelError: if the family cannot be observed.
        StatisticsError: if an invariant of the sums is broken.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", max_tokens)
    max_tokens = min(max_tokens, context)
    batches = list(encode(demonstrations.texts, tokenizer, max_tokens, batch_size))
    num_cut = sum(int(batch.mask_BS.sum(dim=1).eq(max_tokens).sum()) for batch in batches)
    if num_cut:
        logger.info(
            "%d of %d demonstrations reach %d tokens and are cut there", num_cut, len(demonstrations), max_tokens
        )
    total = sum(batch.num_tokens for batch in batches)
    sums = start_sums(layout, batches, requests, embedding_tokens)
    device = next(model.parameters()).device
    with (
        torch.inference_mode(),
        observe(model, sums.add) as set_batch,
        tqdm(total=total, unit="tok", desc=f"collect {demonstrations.domain}", unit_scale=True) as progress,
    ):
        for batch in batches:
            set_batch(on_device := batch.to(device))
            # The head's logits are not needed, only what the layers do.
            model.base_model(on_device.input_ids_BS, attention_mask=on_device.mask_BS, use_cache=False)
            progress.update(batch.num_tokens)
    return sums.as_statistics(demonstrations.domain, provenance)
