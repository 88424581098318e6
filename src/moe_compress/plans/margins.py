"""What a plan does to each layer, how close the choice was, and how far two plans keep the same experts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from moe_compress.errors import PlanError
from moe_compress.types import CompressionPlan


@dataclass(frozen=True)
class Margin:
    """One layer's cut.

    Attributes:
        layer: the decoder layer.
        lowest_kept: the lowest score among experts that stay, alone or merged.
        highest_dropped: the highest among those that go; None when none goes.
        margin: the first less the second, over the spread of the layer's scores, in -1..1; below 0 where something
            else than the score decided (router groups, clusters); None when none goes or all scores are equal.
    """

    layer: int
    lowest_kept: float
    highest_dropped: float | None
    margin: float | None


def margins(plan: CompressionPlan) -> tuple[Margin, ...]:
    """Return each layer's cut.

    Raises:
        PlanError: if the plan has no scores.
    """
    if plan.scores is None:
        raise PlanError(f"the plan of '{plan.method}' has no scores, so no margins; show what it keeps instead")
    found = []
    for row, (layer, experts) in enumerate(zip(plan.layout.layers, plan.layout.num_experts, strict=True)):
        scores_E, kept = plan.scores[row, :experts], set(plan.kept[row])
        lowest = float(min(scores_E[expert] for expert in kept))
        dropped = [float(scores_E[expert]) for expert in range(experts) if expert not in kept]
        highest = max(dropped, default=None)
        spread = float(scores_E.max() - scores_E.min())
        margin = (lowest - highest) / spread if highest is not None and spread > 0 else None
        found.append(Margin(layer, lowest, highest, margin))
    return tuple(found)


def describe_layers(plan: CompressionPlan) -> list[dict[str, Any]]:
    """Return per layer its number, experts before and after, how many of those merge several, and its margin.

    Numbers are rounded to be read. Without scores there are no margins.
    """
    layers: list[dict[str, Any]] = [
        {
            "layer": layer,
            "experts": experts,
            "kept": len(groups),
            "merged": sum(len(group.members) > 1 for group in groups),
        }
        for layer, experts, groups in zip(plan.layout.layers, plan.layout.num_experts, plan.groups, strict=True)
    ]
    if plan.scores is not None:
        for described, cut in zip(layers, map(asdict, margins(plan)), strict=True):
            described |= {name: _shorten(cut[name]) for name in ("margin", "lowest_kept", "highest_dropped")}
    return layers


def _shorten(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def overlap(one: CompressionPlan, other: CompressionPlan) -> tuple[float, ...]:
    """Return per layer the experts both plans keep over those either keeps, in 0..1.

    Raises:
        PlanError: if the plans are for different layouts.
    """
    if one.layout != other.layout:
        raise PlanError(
            f"the plans of '{one.method}' and '{other.method}' are for different models; compare plans of one model"
        )
    pairs = zip(one.kept, other.kept, strict=True)
    return tuple(len({*first} & {*second}) / len({*first, *second}) for first, second in pairs)


def compare_layers(one: CompressionPlan, other: CompressionPlan) -> list[dict[str, Any]]:
    """Return per layer how many experts each plan keeps, how many both keep, their overlap and their equal groups.

    An expert that is merged counts as kept.

    Raises:
        PlanError: if the plans are for different layouts.
    """
    shares = overlap(one, other)
    rows = zip(one.layout.layers, one.kept, other.kept, one.groups, other.groups, shares, strict=True)
    return [
        {
            "layer": layer,
            "kept": [len(first), len(second)],
            "both": len({*first} & {*second}),
            "either": len({*first, *second}),
            "overlap": share,
            "same_groups": len({group.members for group in mine} & {group.members for group in theirs}),
        }
        for layer, first, second, mine, theirs, share in rows
    ]
