"""One call of a layer's experts, left as it is, and the norm of every chosen expert's output in it.

The experts run as the model would run them. Two of transformers' implementations have a place where an expert's
bare output can be seen before its gate weight (`post_expert_norm`), and there it is looked at. Any other code is
asked a second time, with every token-expert pair as a token of its own with gate weight 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from moe_compress.collection.contribution import row_norms

Forward = Callable[..., torch.Tensor]


@dataclass(frozen=True)
class ExpertsCall:
    """What the experts of one layer did with one batch, padding included.

    Attributes:
        hidden_TD: what they read.
        ids_TK: experts chosen.
        weights_TK: the gate weights the block handed in.
        norms_TK: L2 norms of the chosen experts' outputs before the gate weight, summed up in float32.
        routed_TD: their weighted sum, as the module returned it.
    """

    hidden_TD: torch.Tensor
    ids_TK: torch.Tensor
    weights_TK: torch.Tensor
    norms_TK: torch.Tensor
    routed_TD: torch.Tensor


def call_experts(
    experts: nn.Module, forward: Forward, hidden: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
) -> tuple[torch.Tensor, ExpertsCall]:
    """Run a layer's experts as the model does.

    Args:
        experts: the module that runs them.
        forward: its own forward.
        hidden: what they read, `[T, D]` or `[B, S, D]`.
        ids_TK: experts chosen.
        weights_TK: gate weights.

    Returns:
        What the module returned, bit for bit, and what it did.
    """
    seen: list[torch.Tensor] = []
    implementation = _implementation_of(experts)
    if implementation in _NORMS_IN_ORDER:
        with _listen(experts, lambda outputs_ND: seen.append(row_norms(outputs_ND))):
            output = forward(hidden, ids_TK, weights_TK)
    else:
        output = forward(hidden, ids_TK, weights_TK)
    hidden_TD = hidden.reshape(-1, hidden.shape[-1])
    if len(seen) == 1 and seen[0].numel() == ids_TK.numel():
        norms_TK = _NORMS_IN_ORDER[implementation](seen[0], ids_TK)
    else:
        norms_TK = row_norms(bare_outputs(forward, hidden_TD, ids_TK, weights_TK))
    routed_TD = output.reshape(-1, output.shape[-1])
    return output, ExpertsCall(hidden_TD, ids_TK, weights_TK, norms_TK, routed_TD)


def call_input_scaled_experts(
    forward: Forward, scaled_ND: torch.Tensor, scores_TE: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, ExpertsCall]:
    """Run experts that read every token times its score, which is 0 for those not chosen (Llama 4).

    The score stays the gate weight `g`, and the norm is that of the output divided by it, so that `g ||e||` is
    the norm of what the expert really adds.

    Args:
        forward: the module's own forward.
        scaled_ND: all tokens for the first expert, then for the next, `N = E * T`.
        scores_TE: the scores, 0 where not chosen.
        top_k: experts chosen for each token.
    """
    output = forward(scaled_ND)
    num_tokens, num_experts = scores_TE.shape
    outputs_ETD = output.reshape(num_experts, num_tokens, -1)
    weights_TK, ids_TK = scores_TE.topk(top_k, dim=-1)
    chosen_TKD = outputs_ETD[ids_TK, torch.arange(num_tokens, device=ids_TK.device).unsqueeze(1)]
    norms_TK = row_norms(chosen_TKD) / weights_TK.float()
    call = ExpertsCall(scaled_ND[:num_tokens], ids_TK, weights_TK, norms_TK, outputs_ETD.sum(dim=0))
    return output, call


def bare_outputs(
    forward: Forward, hidden_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """Return each chosen expert's output before its gate weight, `[T, K, D]`, by the module's own forward."""
    top_k = ids_TK.shape[1]
    # First choices first, then second choices: the order in which eager code meets an expert's tokens.
    pairs_ND = hidden_TD.repeat(top_k, 1)
    ones_N1 = torch.ones_like(weights_TK).reshape(-1, 1)
    outputs = forward(pairs_ND, ids_TK.T.reshape(-1, 1), ones_N1)
    return outputs.reshape(top_k, len(hidden_TD), -1).transpose(0, 1)


def _implementation_of(experts: nn.Module) -> str:
    """Return the name of transformers' implementation that runs the experts, `eager` for their class's own code."""
    is_dispatched = hasattr(experts, "_is_expert_parallel")
    return str(experts.config._experts_implementation) if is_dispatched else "eager"  # type: ignore[union-attr]


@contextmanager
def _listen(experts: Any, see: Callable[[torch.Tensor], None]) -> Iterator[None]:
    """Hand each expert's bare output to `see` where the stock implementations apply a norm of the experts' own."""
    if experts.has_post_expert_norm:
        handle = experts.post_expert_norm.register_forward_hook(lambda module, inputs, output: see(output))
        try:
            yield
        finally:
            handle.remove()
        return

    def pass_on(outputs_ND: torch.Tensor) -> torch.Tensor:
        see(outputs_ND)
        return outputs_ND

    experts.has_post_expert_norm, experts.post_expert_norm = True, pass_on
    try:
        yield
    finally:
        experts.has_post_expert_norm = False
        del experts.post_expert_norm


def _as_paired(norms_N: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
    return norms_N.reshape(ids_TK.shape)


def _from_sorted(norms_N: torch.Tensor, ids_TK: torch.Tensor) -> torch.Tensor:
    """Undo the sorting by expert, which the same call on the same ids repeats."""
    order_N = torch.sort(ids_TK.reshape(-1)).indices
    return torch.empty_like(norms_N).index_copy_(0, order_N, norms_N).reshape(ids_TK.shape)


_NORMS_IN_ORDER = {"grouped_mm": _from_sorted, "batched_mm": _as_paired}
"""How to bring the rows those implementations hand to `post_expert_norm` back to tokens and choices."""
