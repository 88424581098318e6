"""Which old experts make up each new one, and how many a layer keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from moe_compress.errors import ParameterError, PlanError
from moe_compress.types.identity import FloatArray, Provenance, digest_of
from moe_compress.types.layout import MoELayout

RouterGroups = Literal["balanced", "flatten"]
"""What becomes of a router's groups: each keeps as many experts as the others, or the groups go."""


@dataclass(frozen=True)
class Budget:
    """How many experts stay, said one way or the other, and where they compete.

    Attributes:
        experts_per_layer: experts kept in every layer; with the other scopes, on average.
        fraction_dropped: share of the experts that goes, in [0, 1); what is dropped rounds down.
        scope: `per_layer` gives each layer the same, `global` shares the total out by one ranking of all layers,
            `importance` what is above the layers' floors in proportion to their summed scores.
        multiple_of: each layer keeps a multiple of this, as some engines want; what is kept rounds up to it.
        at_least: experts that no layer goes below where layers share a total; None for what its router needs.
        at_most: experts that no layer goes above where layers share a total; None for all it has.
        layer_fraction_dropped: share of its experts that a layer loses at most where layers share a total, in
            [0, 1]; the default is that of C-Prune's published code.
    """

    experts_per_layer: int | None = None
    fraction_dropped: float | None = None
    scope: Literal["per_layer", "global", "importance"] = "per_layer"
    multiple_of: int = 1
    at_least: int | None = None
    at_most: int | None = None
    layer_fraction_dropped: float = 0.9

    def __post_init__(self) -> None:
        if (self.experts_per_layer is None) == (self.fraction_dropped is None):
            raise ParameterError(
                f"select.budget needs exactly one of experts_per_layer and fraction_dropped, got "
                f"{self.experts_per_layer} and {self.fraction_dropped}; set the other to null"
            )
        if self.fraction_dropped is not None and not 0 <= self.fraction_dropped < 1:
            raise ParameterError(
                f"select.budget.fraction_dropped is {self.fraction_dropped}; give a share of at least 0 and below 1"
            )
        if self.scope not in ("per_layer", "global", "importance"):
            raise ParameterError(f"select.budget.scope is '{self.scope}'; give per_layer, global or importance")
        if self.multiple_of < 1:
            raise ParameterError(f"select.budget.multiple_of is {self.multiple_of}; give at least 1")
        if not 0 <= self.layer_fraction_dropped <= 1:
            raise ParameterError(
                f"select.budget.layer_fraction_dropped is {self.layer_fraction_dropped}; give a share in 0..1"
            )
        if self.scope == "per_layer" and (self.at_least, self.at_most) != (None, None):
            raise ParameterError(
                f"select.budget.at_least and at_most are {self.at_least} and {self.at_most}, but in scope "
                "per_layer all layers keep the same; set them to null, or the scope to global"
            )


@dataclass(frozen=True)
class ExpertGroup:
    """The old experts that make up one new expert, and with what weights; one member is pruning."""

    members: tuple[int, ...]
    weights: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.members or len(self.members) != len(self.weights):
            raise PlanError(
                f"a group needs one weight per member, got {len(self.weights)} weights for members "
                f"{list(self.members)}; give one weight each"
            )


@dataclass(frozen=True)
class RouterNoise:
    """What is added to merged experts' router rows: `epsilon N(0, I)` (C-Prune, 13).

    Attributes:
        epsilon: standard deviation, above 0.
        seed: of the draw.
    """

    epsilon: float
    seed: int


@dataclass(frozen=True)
class CompressionPlan:
    """For each layer, in new order, which old experts make up each new one.

    Attributes:
        layout: the base model's layout, which `groups` indexes into.
        groups: per layer (length L) the new experts' groups, ordered by smallest member.
        method: name of the method that chose.
        scores: float64 `[L, E]` that decided, higher is better; None when nothing was scored.
        provenance: where the plan came from.
        router_groups: for a router that picks among groups of experts, whether they stay, each with the same number
            of experts, or are given up, so that it then picks freely.
        router_noise: what is added to the router rows of merged experts; None for nothing.
        align_neurons: whether experts that merge first have their neurons put in the heaviest member's order.
    """

    layout: MoELayout
    groups: tuple[tuple[ExpertGroup, ...], ...]
    method: str
    scores: FloatArray | None = None
    provenance: Provenance = field(default_factory=dict)
    router_groups: RouterGroups = "balanced"
    router_noise: RouterNoise | None = None
    align_neurons: bool = False

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.layout.layers):
            raise PlanError(
                f"plan of '{self.method}' covers {len(self.groups)} layers, the model has "
                f"{len(self.layout.layers)} with experts; plan for this model"
            )
        for layer, count, groups in zip(self.layout.layers, self.layout.num_experts, self.groups, strict=True):
            self._check_layer(layer, count, groups)
        shape = len(self.layout.layers), max(self.layout.num_experts)
        if self.scores is not None and self.scores.shape != shape:
            raise PlanError(
                f"plan of '{self.method}' has scores of {list(self.scores.shape)}, the model has {shape[0]} layers "
                f"of up to {shape[1]} experts; plan for this model"
            )

    def _check_layer(self, layer: int, num_experts: int, groups: tuple[ExpertGroup, ...]) -> None:
        members = [member for group in groups for member in group.members]
        if len(groups) < self.layout.top_k:
            raise PlanError(
                f"layer {layer} would keep {len(groups)} experts, but the router picks "
                f"top_k={self.layout.top_k} per token; keep at least {self.layout.top_k} (select.budget)"
            )
        if len(set(members)) != len(members) or not all(0 <= m < num_experts for m in members):
            raise PlanError(
                f"layer {layer} names experts {sorted(members)[:8]}... twice or outside 0..{num_experts - 1}; "
                "plan each expert once"
            )
        if self.layout.num_groups > 1 and self.router_groups == "balanced":
            self._check_router_groups(layer, num_experts, groups)

    def _check_router_groups(self, layer: int, num_experts: int, groups: tuple[ExpertGroup, ...]) -> None:
        """Check that a router which groups experts by position finds each expert in its old group."""
        num_groups, topk_groups = self.layout.num_groups, self.layout.topk_groups
        old_size = num_experts // num_groups
        new_size, rest = divmod(len(groups), num_groups)
        homes = [{member // old_size for member in group.members} for group in groups]
        if rest or any(home != {new // new_size} for new, home in enumerate(homes)):
            kept = [sum(min(home) == group for home in homes) for group in range(num_groups)]
            raise PlanError(
                f"layer {layer} would keep {kept} experts of the router's {num_groups} groups; keep the same "
                "number of each, in order, and merge inside groups only, or give the groups up "
                "(select.groups: flatten)"
            )
        if new_size < 2 or new_size * topk_groups < self.layout.top_k:
            raise PlanError(
                f"layer {layer} would keep {new_size} experts per group, but the router needs at least 2 to rank "
                f"a group and top_k={self.layout.top_k} in the {topk_groups} groups a token may use; keep more "
                "experts"
            )

    @property
    def new_layout(self) -> MoELayout:
        """The layout after compression."""
        layout = self.layout.flattened if self.router_groups == "flatten" else self.layout
        return replace(layout, num_experts=tuple(len(groups) for groups in self.groups))

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Per layer, the old experts that are in some group, ascending."""
        return tuple(tuple(sorted(m for g in groups for m in g.members)) for groups in self.groups)

    @property
    def is_pruning(self) -> bool:
        """Whether every group has one member, so that kept tensors stay byte-identical."""
        return all(len(group.members) == 1 for groups in self.groups for group in groups)

    @property
    def digest(self) -> str:
        """The sha256 of what the plan does to a checkpoint: layout and groups, not how they were chosen."""
        done = [asdict(self.layout), [[asdict(group) for group in groups] for groups in self.groups]]
        options = {"flatten": self.router_groups == "flatten", "align_neurons": self.align_neurons}
        noise = () if self.router_noise is None else (asdict(self.router_noise),)
        return digest_of([*done, *(name for name, is_set in options.items() if is_set), *noise])


def pruning_groups(kept: Sequence[int]) -> tuple[ExpertGroup, ...]:
    """Return one group per kept expert, in ascending order of old index."""
    return tuple(ExpertGroup((int(expert),)) for expert in sorted(kept))


def iterate_layers(plan: CompressionPlan) -> Iterator[tuple[int, tuple[ExpertGroup, ...]]]:
    """Yield (decoder layer index, groups) of a plan."""
    yield from zip(plan.layout.layers, plan.groups, strict=True)
