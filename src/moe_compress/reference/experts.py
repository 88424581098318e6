"""An experts implementation for training: tokens sorted by expert, no padding, products in autocast's precision."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

IMPLEMENTATION = "sorted_slices"
_BLOCK = 64


class _GroupedLinear(torch.autograd.Function):
    """Apply each expert's matrix to its own slice of rows."""

    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, weight_EOI: Tensor, ends: list[int]) -> Tensor:
        ctx.save_for_backward(rows_NI, weight_EOI)
        ctx.ends = ends
        output_NO = rows_NI.new_empty(rows_NI.shape[0], weight_EOI.shape[1])
        for expert, (start, end) in enumerate(itertools.pairwise(ends)):
            torch.mm(rows_NI[start:end], weight_EOI[expert].t(), out=output_NO[start:end])
        return output_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_NI, weight_EOI = ctx.saved_tensors
        gradient_NO = gradients[0].contiguous()
        rows_gradient, weight_gradient = torch.empty_like(rows_NI), torch.empty_like(weight_EOI)
        for expert, (start, end) in enumerate(itertools.pairwise(ctx.ends)):
            torch.mm(gradient_NO[start:end], weight_EOI[expert], out=rows_gradient[start:end])
            torch.mm(gradient_NO[start:end].t(), rows_NI[start:end], out=weight_gradient[expert])
        return rows_gradient, weight_gradient, None


def sorted_slices(experts: nn.Module, hidden_TH: Tensor, expert_ids_TK: Tensor, gate_weights_TK: Tensor) -> Tensor:
    """Run every token's experts, each expert on one contiguous slice of the tokens sorted by expert.

    Gradients are repeatable: every scatter writes each row once.

    Args:
        experts: A transformers experts module with `gate_up_proj [E, 2I, H]`, `down_proj [E, H, I]` and `act_fn`.
        hidden_TH: Hidden states.
        expert_ids_TK: The experts each token goes to.
        gate_weights_TK: How much each of them counts.

    Returns:
        The weighted sum of the experts' outputs, `[T, H]`.
    """
    gate_up, down, activation = experts.gate_up_proj, experts.down_proj, experts.act_fn
    assert isinstance(gate_up, Tensor) and isinstance(down, Tensor) and isinstance(activation, nn.Module)
    num_tokens, top_k = expert_ids_TK.shape
    place, ends = _places(expert_ids_TK.reshape(-1), len(gate_up))
    precision = _precision(hidden_TH)
    copies = hidden_TH.to(precision).unsqueeze(1).expand(-1, top_k, -1).reshape(num_tokens * top_k, -1)
    rows = copies.new_zeros(ends[-1], copies.shape[1]).index_copy(0, place, copies)
    gate, up = _grouped(rows, gate_up, ends).chunk(2, dim=-1)
    output = _grouped(activation(gate) * up, down, ends).index_select(0, place)
    weighted = output.view(num_tokens, top_k, -1) * gate_weights_TK.unsqueeze(-1).to(precision)
    return weighted.sum(dim=1).to(hidden_TH.dtype)


def _places(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, list[int]]:
    """Return each assignment's row, and where each expert's rows end; slices are whole blocks.

    Whole blocks, because the matrix library prepares a kernel for every new number of rows.
    """
    counts = torch.bincount(expert_ids, minlength=num_experts)
    blocks = (counts + _BLOCK - 1) // _BLOCK * _BLOCK
    order = torch.argsort(expert_ids, stable=True)
    shift = (blocks.cumsum(0) - blocks) - (counts.cumsum(0) - counts)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) + shift[expert_ids[order]]
    return place, [0, *blocks.cumsum(0).tolist()]


def _grouped(rows: Tensor, weight: Any, ends: list[int]) -> Tensor:
    return _GroupedLinear.apply(rows, weight.to(rows.dtype), ends)  # type: ignore[no-any-return,no-untyped-call]


def _precision(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def register() -> None:
    """Make the implementation known to transformers under `IMPLEMENTATION`."""
    ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, sorted_slices)
