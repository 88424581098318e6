"""Find numbers in a loaded model that are none, and say where, before they hide in an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from moe_compress.errors import NotFiniteError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PIECE = 2**24
"""Elements looked at once, so that the check needs little memory beside the weights."""


def check_weights(model: PreTrainedModel, name: str) -> None:
    """Check that every weight is a finite number, also of experts that no question would reach.

    A checkpoint's buffers count as well, such as the biases that DeepSeek-V3 adds to the scores of its router.

    Args:
        model: a loaded model.
        name: what it is called in the message.

    Raises:
        NotFiniteError: naming the first tensor that is not, and the row (of experts' weights, the expert).
    """
    for tensor_name, tensor in model.state_dict().items():
        place = first_broken(tensor)
        if place is not None:
            raise NotFiniteError(
                f"{name} holds NaN or infinity in {tensor_name} at index {place} of its first dimension; rewrite "
                "or fetch the checkpoint again"
            )


@torch.inference_mode()
def first_broken(tensor: torch.Tensor) -> int | None:
    """Return where in its first dimension a tensor first holds what is no finite number, None if nowhere."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return None
    rows = tensor if tensor.ndim else tensor[None]
    step = max(1, _PIECE // max(1, rows[0].numel()))
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        piece = piece if piece.element_size() > 1 else piece.float()
        # A sum is finite only if every term is, and reads the weights once; it may also overflow by itself.
        if not piece.sum(dtype=torch.float32).isfinite():
            broken = (~piece.isfinite()).flatten(1) if piece.ndim > 1 else ~piece.isfinite()[:, None]
            found = broken.any(1).nonzero()
            if len(found):
                return start + int(found[0, 0])
    return None
