"""The values that pass between stages; frozen, and valid once built.

Shape letters used in names throughout the package (`gate_weights_TK` has shape `[T, K]`):

    T  tokens of a batch, padding removed      K  experts the router picks per token (top_k)
    L  layers with routed experts              D  hidden size
    E  routed experts of a layer               B, S  sequences of a batch, positions of a sequence
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from moe_compress.errors import DataError, EvaluationError, ParameterError, PlanError, StatisticsError

if TYPE_CHECKING:
    import torch

Provenance = Mapping[str, str]
"""Where a value came from: base id, revision and digests, data digests, parameters, seed, versions."""

FloatArray = NDArray[np.float64]


def digest_of(value: object) -> str:
    """Return the sha256 of a JSON-able value, the same for equal values whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True)
class MoELayout:
    """Which decoder layers have routed experts, how many each, and how the router picks.

    Attributes:
        layers: decoder layer indices with routed experts, ascending; length L.
        num_experts: routed experts of each of those layers; length L.
        top_k: experts picked per token.
        num_groups: groups a group-limited router divides the experts into; 1 when it has none.
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
        for layer, count in zip(self.layers, self.num_experts, strict=True):
            if count < self.top_k:
                raise PlanError(
                    f"layer {layer} has {count} experts, but the router picks top_k={self.top_k} per token; "
                    f"keep at least {self.top_k} (select.budget)"
                )

    @property
    def is_uniform(self) -> bool:
        """Whether every layer has the same number of experts, as stock loaders require."""
        return len(set(self.num_experts)) == 1


@dataclass(frozen=True)
class RoutingBatch:
    """What one MoE layer did with one batch, padding removed.

    Attributes:
        expert_ids_TK: experts picked, int64.
        gate_weights_TK: the factors the model really multiplied the experts' outputs with, float32.
        output_norms_TK: L2 norms of the experts' outputs before the gate weight, float64.
        residual_change_T: `1 - cos(h, h + routed output)`, float64, not yet cut at 0.
        router_logits_TE: the router's logits for every expert, as the model computed them.
    """

    expert_ids_TK: torch.Tensor
    gate_weights_TK: torch.Tensor
    output_norms_TK: torch.Tensor
    residual_change_T: torch.Tensor
    router_logits_TE: torch.Tensor


@dataclass(frozen=True)
class ExpertStatistics:
    """Named sums over the tokens of one domain, per layer and expert; two of them add with `+`.

    Attributes:
        domain: whose tokens were summed; `a+b` after adding two domains.
        layout: the layout the sums index into.
        sums: name -> float64 `[L, E]` (or `[L, E, D]`).
        num_tokens: tokens seen, padding not counted.
        provenance: where the sums came from.
    """

    domain: str
    layout: MoELayout
    sums: Mapping[str, FloatArray]
    num_tokens: int
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        lead = (len(self.layout.layers), max(self.layout.num_experts))
        for name, values in self.sums.items():
            if values.shape[:2] != lead:
                raise StatisticsError(
                    f"statistic '{name}' of domain '{self.domain}' has shape {list(values.shape)}, "
                    f"the layout needs {list(lead)} first; collect it again"
                )
            if not np.isfinite(values).all():
                raise StatisticsError(
                    f"statistic '{name}' of domain '{self.domain}' holds NaN or infinity; "
                    "check the checkpoint for damaged weights and collect again"
                )
        self._check_counts()

    def _check_counts(self) -> None:
        """Check the invariant of every collection: per layer, `sum_i N_i == tokens * top_k`."""
        expected = self.num_tokens * self.layout.top_k
        for layer, counts_E in zip(self.layout.layers, self.sums.get("count", ()), strict=False):
            if counts_E.sum() != expected:
                raise StatisticsError(
                    f"layer {layer} counted {int(counts_E.sum())} routed tokens of domain '{self.domain}', "
                    f"but {self.num_tokens} tokens times top_k={self.layout.top_k} is {expected}; collect it again"
                )

    def __getitem__(self, name: str) -> FloatArray:
        """Return one sum by name.

        Raises:
            StatisticsError: if it was not collected.
        """
        if name not in self.sums:
            raise StatisticsError(
                f"no statistic '{name}' was collected for domain '{self.domain}'; "
                f"available: {', '.join(sorted(self.sums))}"
            )
        return self.sums[name]

    def __add__(self, other: ExpertStatistics) -> ExpertStatistics:
        """Return the sums over both sets of tokens.

        Raises:
            StatisticsError: if layouts or the names of the sums differ.
        """
        if self.layout != other.layout or set(self.sums) != set(other.sums):
            raise StatisticsError(
                f"statistics of '{self.domain}' and '{other.domain}' do not add: their layouts or sums differ; "
                "collect both from the same base model with the same settings"
            )
        domain = self.domain if self.domain == other.domain else f"{self.domain}+{other.domain}"
        sums = {name: values + other.sums[name] for name, values in self.sums.items()}
        return replace(self, domain=domain, sums=sums, num_tokens=self.num_tokens + other.num_tokens)


@dataclass(frozen=True)
class Budget:
    """How many experts a layer keeps, said one way or the other.

    Attributes:
        experts_per_layer: experts kept in every layer.
        fraction_dropped: share of each layer's experts that goes, in [0, 1); what is dropped rounds down.
    """

    experts_per_layer: int | None = None
    fraction_dropped: float | None = None

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
class CompressionPlan:
    """For each layer, in new order, which old experts make up each new one.

    Attributes:
        layout: the base model's layout, which `groups` indexes into.
        groups: per layer (length L) the new experts' groups, ordered by smallest member.
        method: name of the method that chose.
        scores: float64 `[L, E]` that decided, higher is better; None when nothing was scored.
        provenance: where the plan came from.
    """

    layout: MoELayout
    groups: tuple[tuple[ExpertGroup, ...], ...]
    method: str
    scores: FloatArray | None = None
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.groups) != len(self.layout.layers):
            raise PlanError(
                f"plan of '{self.method}' covers {len(self.groups)} layers, the model has "
                f"{len(self.layout.layers)} with experts; plan for this model"
            )
        for layer, count, groups in zip(
            self.layout.layers, self.layout.num_experts, self.groups, strict=True
        ):
            self._check_layer(layer, count, groups)

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

    @property
    def new_layout(self) -> MoELayout:
        """The layout after compression."""
        return replace(self.layout, num_experts=tuple(len(groups) for groups in self.groups))

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
        return digest_of([asdict(self.layout), [[asdict(g) for g in groups] for groups in self.groups]])


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, known from a file's header alone.

    Attributes:
        name: its name on disk.
        dtype: the safetensors name of its dtype, such as `BF16` or `F8_E4M3`.
        shape: its shape on disk.
        file: the shard's file name inside the checkpoint folder.
        start: absolute offset of its first byte in that file.
        num_bytes: its size in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    num_bytes: int


@dataclass(frozen=True)
class TensorRole:
    """What one checkpoint tensor is to the rewriter.

    Attributes:
        kind: `expert` (belongs to one routed expert), `expert_axis` (one slice per expert along `axis`:
            fused experts, router rows, correction biases) or `untouched`.
        layer: the decoder layer, when the kind is not `untouched`.
        expert: the expert, when the kind is `expert`.
        axis: the axis that counts experts, when the kind is `expert_axis`.
        rows_per_expert: consecutive entries along `axis` that one expert owns.
        is_router: whether the router owns it, so that merging averages rows instead of weights.
    """

    kind: Literal["expert", "expert_axis", "untouched"]
    layer: int | None = None
    expert: int | None = None
    axis: int = 0
    rows_per_expert: int = 1
    is_router: bool = False


@dataclass(frozen=True)
class TensorMap:
    """What every tensor of a checkpoint is, and how an expert's name is written.

    Attributes:
        layout: the layout read from config and names.
        roles: tensor name on disk -> role, one for every tensor of the checkpoint.
        count_keys: dotted paths in `config.json` that hold the number of routed experts, every alias included.
        expert_spans: for kind `expert`, tensor name -> `[start, end)` of the expert's index in the name.
    """

    layout: MoELayout
    roles: Mapping[str, TensorRole]
    count_keys: tuple[str, ...]
    expert_spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def rename(self, name: str, expert: int) -> str:
        """Return an expert tensor's name with its expert index replaced."""
        start, end = self.expert_spans[name]
        return f"{name[:start]}{expert}{name[end:]}"


@dataclass(frozen=True)
class Demonstrations:
    """A domain's worked examples as token sequences, and the rows they came from.

    Attributes:
        domain: the domain's name.
        ids: one id per example.
        texts: the text of each example as the model reads it: prompt, then response.
        digest: sha256 of the rows, the data's identity in keys and lineage.
    """

    domain: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    digest: str

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError(
                f"domain '{self.domain}' has no demonstrations; add rows with 'question' and 'answer' "
                "to its demonstrations file"
            )

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True)
class ItemResult:
    """How a model did on one benchmark item.

    Attributes:
        task: the task's name, such as `medical`.
        item: the item's id.
        log_likelihoods: of each choice, in nats.
        chosen: index of the likeliest choice.
        answer: index of the right choice.
    """

    task: str
    item: str
    log_likelihoods: tuple[float, ...]
    chosen: int
    answer: int

    @property
    def is_correct(self) -> bool:
        """Whether the likeliest choice is the right one."""
        return self.chosen == self.answer


@dataclass(frozen=True)
class EvaluationResult:
    """What was measured of one model; items are kept, so that two models compare pairwise.

    Attributes:
        model: what the model is called in messages.
        items: every benchmark item of every task.
        perplexities: domain -> perplexity per token on held-out text.
        num_parameters: parameters in the checkpoint.
        num_bytes: bytes of its weight files.
        tokens_per_second: prefill speed in this run.
        provenance: where the result came from.
    """

    model: str
    items: tuple[ItemResult, ...]
    perplexities: Mapping[str, float]
    num_parameters: int
    num_bytes: int
    tokens_per_second: float
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        broken = [f"{i.task}/{i.item}" for i in self.items if not np.isfinite(i.log_likelihoods).all()]
        if broken:
            raise EvaluationError(
                f"{self.model} gave a likelihood that is not a number on {len(broken)} items, first {broken[0]}; "
                "check its weights for NaN before trusting any score"
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that have items, in first-seen order."""
        return tuple(dict.fromkeys(item.task for item in self.items))

    def items_of(self, task: str) -> tuple[ItemResult, ...]:
        """Return one task's items.

        Raises:
            EvaluationError: if the task was not evaluated; a missing score is never 0.
        """
        items = tuple(item for item in self.items if item.task == task)
        if not items:
            raise EvaluationError(
                f"{self.model} was not evaluated on '{task}'; add it to evaluate.tasks (have: {', '.join(self.tasks)})"
            )
        return items

    def accuracy(self, task: str) -> float:
        """Return the share of one task's items answered rightly, in 0..1."""
        items = self.items_of(task)
        return sum(item.is_correct for item in items) / len(items)


@dataclass(frozen=True)
class TaskComparison:
    """How the candidate did beside the baseline on the same items of one task; shares are in 0..1.

    Attributes:
        task: the task's name, such as `medical`.
        num_items: items both models answered.
        chance: accuracy of guessing.
        baseline_accuracy: share the baseline answered rightly.
        candidate_accuracy: share the candidate answered rightly.
        difference: candidate minus baseline accuracy.
        difference_low: lower end of its 95 % interval.
        difference_high: upper end of its 95 % interval.
        share_kept: accuracy above chance, candidate over baseline; NaN where the baseline only guesses.
        share_kept_low: lower end of its 95 % interval.
        share_kept_high: upper end of its 95 % interval.
        gained: items only the candidate answered rightly.
        lost: items only the baseline answered rightly.
        p_value: of McNemar's exact test that gains and losses are equally likely.
    """

    task: str
    num_items: int
    chance: float
    baseline_accuracy: float
    candidate_accuracy: float
    difference: float
    difference_low: float
    difference_high: float
    share_kept: float
    share_kept_low: float
    share_kept_high: float
    gained: int
    lost: int
    p_value: float


@dataclass(frozen=True)
class GateOutcome:
    """One gate's verdict: what was measured, what was asked, and whether failing it blocks a release."""

    name: str
    observed: float | None
    direction: Literal["at_least", "at_most"]
    limit: float
    severity: Literal["critical", "warning"]
    passed: bool
    description: str


@dataclass(frozen=True)
class GateReport:
    """Every gate's outcome, in the order they were asked."""

    domain: str
    outcomes: tuple[GateOutcome, ...]

    @property
    def failures(self) -> tuple[GateOutcome, ...]:
        """The outcomes that block a release."""
        return tuple(o for o in self.outcomes if not o.passed and o.severity == "critical")

    @property
    def passed(self) -> bool:
        """Whether nothing blocks a release; a report without gates proves nothing and does not pass."""
        return bool(self.outcomes) and not self.failures


@dataclass(frozen=True)
class CheckpointReference:
    """A checkpoint folder and what identifies its content.

    Attributes:
        path: the folder with `config.json` and safetensors files.
        name: how people call the model: a hub id, or the folder's name.
        weights_digest: sha256 of the names and bytes of its weight files.
        settings_digest: sha256 of its config, tokenizer and templates.
        revision: hub revision or registry version, `local` for a plain folder.
    """

    path: Path
    name: str
    weights_digest: str
    settings_digest: str
    revision: str = "local"

    @property
    def identity(self) -> str:
        """One digest of everything that decides what the model says."""
        return digest_of([self.weights_digest, self.settings_digest])

    def as_provenance(self) -> dict[str, str]:
        """Return the lineage entries of a base model."""
        return {
            "base_id": self.name,
            "base_revision": self.revision,
            "base_weights_digest": self.weights_digest,
            "base_settings_digest": self.settings_digest,
        }


def pruning_groups(kept: Sequence[int]) -> tuple[ExpertGroup, ...]:
    """Return one group per kept expert, in ascending order of old index."""
    return tuple(ExpertGroup((int(expert),)) for expert in sorted(kept))


def iterate_layers(plan: CompressionPlan) -> Iterator[tuple[int, tuple[ExpertGroup, ...]]]:
    """Yield (decoder layer index, groups) of a plan."""
    yield from zip(plan.layout.layers, plan.groups, strict=True)


def as_json(value: Any) -> Any:
    """Return a dataclass of this module as plain JSON-able values (arrays become nested lists)."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: as_json(getattr(value, name)) for name in value.__dataclass_fields__}
    return str(value) if isinstance(value, Path) else value
