"""Which layers of a model have routed experts, and how the router picks among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from moe_compress.errors import PlanError


@dataclass(frozen=True)
class MoELayout:
    """Which decoder layers have routed experts, how many each, and how the router picks.

    Attributes:
        layers: decoder layer indices with routed experts, ascending; length L.
        num_experts: routed experts of each of those layers; length L.
        top_k: experts picked per token.
        num_groups: equal groups a group-limited router divides the experts into, by position; 1 when it has none.
        topk_groups: groups the router may pick from per token.
    """

    layers: tuple[int, ...]
    num_experts: tuple[int, ...]
    top_k: int
    num_groups: int = 1
    topk_groups: int = 1

    def __post_init__(self) -> None:
        if not self.layers or len(self.layers) != len(self.num_experts):
            raise PlanError(
                f"a layout needs one expert count per layer, got {len(self.num_experts)} counts "
                f"for {len(self.layers)} layers; read it from the checkpoint's config"
            )
        if self.top_k < 1:
            raise PlanError(
                f"a layout has top_k={self.top_k}, and a router picks at least 1 expert per token; correct the "
                "number of experts per token in config.json"
            )
        for layer, count in zip(self.layers, self.num_experts, strict=True):
            if count < self.top_k:
                raise PlanError(
                    f"layer {layer} has {count} experts, but the router picks top_k={self.top_k} per token; "
                    "correct the number of experts, or of experts per token, in config.json"
                )
            if self.num_groups < 1 or count % self.num_groups or not 1 <= self.topk_groups <= self.num_groups:
                raise PlanError(
                    f"layer {layer} has {count} experts in {self.num_groups} router groups of which a token may "
                    f"use {self.topk_groups}; the router needs equal groups and may use at most all of them, so "
                    "correct the config"
                )

    @property
    def flattened(self) -> MoELayout:
        """The same experts under a router that knows no groups."""
        return replace(self, num_groups=1, topk_groups=1)

    @property
    def described(self) -> str:
        """The layout in a few words, for messages."""
        counts = sorted({min(self.num_experts), max(self.num_experts)})
        return (
            f"{len(self.layers)} layers of {' to '.join(map(str, counts))} experts with top_k={self.top_k} and "
            f"{self.num_groups} groups"
        )

    @property
    def is_uniform(self) -> bool:
        """Whether every layer has the same number of experts, as stock loaders require."""
        return len(set(self.num_experts)) == 1


def layout_from_json(value: Mapping[str, object]) -> MoELayout:
    """Return the layout that `dataclasses.asdict` described."""
    return MoELayout(**{k: tuple(v) if isinstance(v, list) else v for k, v in value.items()})  # type: ignore[arg-type]
