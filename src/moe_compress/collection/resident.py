"""Collect the statistics of a model that fits in memory: one plain forward pass over the demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_compress.collection.adding import Adding
from moe_compress.collection.batches import Batch
from moe_compress.collection.observe import observe
from moe_compress.collection.progress import Progress
from moe_compress.collection.sums import RoutingSums
from moe_compress.loading import load_model

_ALIGNMENT = 64
"""Bytes; what torch allocates is aligned to them."""


def load_resident(folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """Return the model of a local checkpoint, ready to run without gradients.

    It is loaded where it runs: host memory may be far smaller than a GPU's.
    """
    return settle_weights(load_model(folder, dtype=dtype, device_map=str(device), local_files_only=True).eval())


def settle_weights(model: Any) -> Any:
    """Return the model with its weights as streaming holds them: without gradients and aligned in memory.

    Both decide the last bits on a CPU. torch folds a batched product into one where a factor wants gradients, and
    matrix libraries sum in another order where rows begin in the middle of a vector, as they do in a mapped file.
    """
    for weight in model.requires_grad_(False).parameters():
        if weight.data_ptr() % _ALIGNMENT:
            weight.data = weight.data.clone()
    return model


def collect_resident(
    model: Any, domains: Mapping[str, Sequence[Batch]], sums: Mapping[str, RoutingSums], progress: Progress
) -> None:
    """Add up each domain's sums, one forward pass per batch.

    Args:
        model: a loaded transformers model.
        domains: name -> batches.
        sums: domain -> what its batches are added to.
        progress: is told of each batch, and at the end of the pass as of one layer that read nothing.

    Raises:
        UnsupportedModelError: if the family cannot be observed.
    """
    progress.start_layer(0)
    device = next(model.parameters()).device
    adding = Adding(sums)
    with torch.inference_mode(), observe(model, adding.record, adding.inspect) as set_batch:
        for domain, batches in domains.items():
            adding.domain = domain
            for batch in batches:
                set_batch(on_device := batch.to(device))
                # The head's logits are not needed, only what the layers do.
                model.base_model(on_device.input_ids_BS, attention_mask=on_device.mask_BS, use_cache=False)
                progress.add_tokens(batch.num_tokens)
        adding.finish()
    progress.end_layer(0)
