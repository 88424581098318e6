"""`reconstruct`: keep the set that, with the router's choice made anew, changes the layer's output least (ours)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np

from moe_compress.errors import StatisticsError
from moe_compress.methods._budget import experts_to_keep, layer_bounds, step_of, total_to_keep
from moe_compress.methods._choose import rank, take_in_turn
from moe_compress.methods._curves import share_by_error
from moe_compress.methods._parameters import MethodParameters
from moe_compress.types import Budget, CompressionPlan, ExpertStatistics, LayerSample, pruning_groups

if TYPE_CHECKING:
    import torch

STATISTICS: tuple[str, ...] = ("elimination_rank", "elimination_error")


class PARAMETERS(MethodParameters):
    """What elimination keeps small.

    Attributes:
        error: mean over tokens. `cosine`: `1 - cos` of the stream after the layer with and without the experts that
            went. `absolute`: the squared change of the routed output. `relative`: that over the squared stream.
    """

    error: Literal["cosine", "absolute", "relative"] = "cosine"


def reduce(sample: LayerSample, seed: int, parameters: PARAMETERS) -> Mapping[str, torch.Tensor]:
    """Return a layer's `elimination_rank` and `elimination_error`, from the sample alone and where it lies.

    Raises:
        UnsupportedModelError: if the rules of the layer's router are not known.
    """
    from moe_compress.methods._eliminate import eliminate
    from moe_compress.methods._find_routing import find_routing

    found = eliminate(sample.products, find_routing(sample), parameters.error, seed=seed)
    return found.as_statistics(sample.products.logits_NE.shape[1])


def plan(statistics: ExpertStatistics, budget: Budget, seed: int, parameters: PARAMETERS) -> CompressionPlan:
    """Return the plan that keeps of each layer the experts that elimination removed last.

    `elimination_rank` is when each expert was removed, `elimination_error` the layer's error with `d` experts gone
    at position `d`, both `[L, E]`. A `global` budget shares its total out so that the layers' errors add up to the
    least.

    Raises:
        ParameterError: if the layout cannot meet the budget.
        StatisticsError: if the ranks are sums of several eliminations.
    """
    layout, rank_LE = statistics.layout, statistics["elimination_rank"]
    order = []
    for row, (layer, experts) in enumerate(zip(layout.layers, layout.num_experts, strict=True)):
        _check_ranks(rank_LE[row, :experts], layer, statistics.domain)
        order.append(take_in_turn(rank(rank_LE[row, :experts], layer, seed), layout.num_groups))
    if budget.scope == "global":
        curves = [
            errors_E[:experts]
            for errors_E, experts in zip(statistics["elimination_error"], layout.num_experts, strict=True)
        ]
        floors, ceilings = layer_bounds(budget, layout)
        keep_L = share_by_error(curves, total_to_keep(budget, layout), floors, ceilings, step_of(budget, layout))
    else:
        keep_L = experts_to_keep(budget, layout)
    groups = tuple(pruning_groups(best[:keep].tolist()) for best, keep in zip(order, keep_L, strict=True))
    return CompressionPlan(layout, groups, "reconstruct", rank_LE)


def _check_ranks(rank_E: np.ndarray, layer: int, domain: str) -> None:
    """Every removal has one rank; experts that stayed to the end share the highest."""
    gone_E = np.sort(rank_E[rank_E < rank_E.max()])
    if not np.array_equal(gone_E, np.arange(len(gone_E))) or rank_E.max() != len(gone_E):
        raise StatisticsError(
            f"layer {layer}'s elimination ranks of '{domain}' are not one elimination's; ranks do not add, so "
            "collect all demonstrations in one pass"
        )
