"""What one batch of a layer adds to each of the sums, on the device and without waiting for it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from moe_compress.types import RoutingBatch


def add_rows(sums: torch.Tensor, places: torch.Tensor, values: torch.Tensor) -> None:
    """Add each of `values` to the row of `sums` at its place, in order, so that it repeats to the bit.

    On a GPU `index_add_` adds in whatever order its threads come; accumulating `index_put_` sorts first.
    """
    if sums.is_cuda:
        sums.index_put_((places,), values, accumulate=True)
    else:
        sums.index_add_(0, places, values)


def add_choices(sums_PES: torch.Tensor, batch: RoutingBatch, part_T: torch.Tensor) -> None:
    """Add each token-expert pair to the sums of `PER_CHOICE` of its token's part and its expert."""
    num_experts, num_sums = sums_PES.shape[1:]
    place_TK = part_T.unsqueeze(1) * num_experts + batch.expert_ids_TK
    add_rows(sums_PES.view(-1, num_sums), place_TK.flatten(), choice_values(batch))


def choice_values(batch: RoutingBatch) -> torch.Tensor:
    """Return what each token-expert pair adds to the sums of `PER_CHOICE`, float64 `[T * K, 6]`.

    With `g` the gate weight, `n` the output norm and `s = max(0, 1 - cos(h, h~))` (EASY-EP; the cut at 0 is
    the authors' code, not the paper): `1, g, n, g n, g n s, g s`.
    """
    gate_TK = batch.gate_weights_TK.double()
    norm_TK = batch.output_norms_TK.double()
    change_T1 = batch.residual_change_T.double().clamp(min=0).unsqueeze(1)
    weighted_TK = gate_TK * norm_TK
    values = (torch.ones_like(gate_TK), gate_TK, norm_TK, weighted_TK, weighted_TK * change_T1, gate_TK * change_T1)
    # Side by side in memory they would be written one number at a time.
    return torch.stack(values).flatten(1).T


def add_requested(sums: Mapping[str, torch.Tensor], batch: RoutingBatch) -> None:
    """Add a batch to those of the statistics on request that `sums` has room for."""
    if "logit_gram" in sums:
        logits_TE = batch.router_logits_TE.double()
        sums["logit_gram"].addmm_(logits_TE.T, logits_TE)
    if "coactivation" in sums:
        picked_TE = torch.zeros_like(batch.router_logits_TE, dtype=torch.float64)
        picked_TE.scatter_(1, batch.expert_ids_TK, 1.0)
        sums["coactivation"].addmm_(picked_TE.T, picked_TE)
    if "max_norm" in sums:
        raise_to(sums["max_norm"], batch.expert_ids_TK, batch.output_norms_TK)
    if "max_gate_norm" in sums:
        raise_to(sums["max_gate_norm"], batch.expert_ids_TK, batch.gate_weights_TK.double() * batch.output_norms_TK)


def raise_to(maxima_E: torch.Tensor, expert_ids_TK: torch.Tensor, values_TK: torch.Tensor) -> None:
    """Raise each expert's maximum to the largest of its tokens' values."""
    maxima_E.scatter_reduce_(0, expert_ids_TK.flatten(), values_TK.double().flatten(), "amax")
