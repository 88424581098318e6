"""Everything one report tells, gathered before any of it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from moe_compress.errors import EvaluationError, PlanError
from moe_compress.reporting import wording
from moe_compress.reporting.tuning import TuningReport
from moe_compress.types import (
    Agreement,
    CompressionPlan,
    EngineVerdict,
    EvaluationResult,
    FloatArray,
    GateReport,
    Measurements,
    PlanBackground,
    ProbeResult,
    Provenance,
    SweepResult,
    TaskComparison,
    Throughput,
)


@dataclass(frozen=True)
class FlippedItem:
    """A benchmark item that only one of the two models answered rightly.

    Attributes:
        task: the task's name.
        question: the question as the models read it.
        choices: the possible answers.
        answer: index of the right choice.
        baseline_choice: index the baseline chose.
        candidate_choice: index the candidate chose.
    """

    task: str
    question: str
    choices: tuple[str, ...]
    answer: int
    baseline_choice: int
    candidate_choice: int

    def __post_init__(self) -> None:
        for index in (self.answer, self.baseline_choice, self.candidate_choice):
            if not 0 <= index < len(self.choices):
                raise EvaluationError(
                    f"a flipped item of '{self.task}' points at choice {index} of {len(self.choices)}; "
                    "pair items and texts by the item's id"
                )

    @property
    def is_gain(self) -> bool:
        """Whether the candidate is the one that answered rightly."""
        return self.candidate_choice == self.answer


@dataclass(frozen=True)
class QualityRow:
    """What is known of one task or domain; a benchmark, a perplexity, or both under the same name."""

    name: str
    is_target: bool
    comparison: TaskComparison | None
    baseline_perplexity: float | None
    candidate_perplexity: float | None


@dataclass(frozen=True)
class CompressionReport:
    """The results of one compression run.

    Attributes:
        domain: the domain the model was compressed for, or the mixture.
        plan: which experts were kept.
        baseline: what was measured of the base model.
        candidate: what was measured of the compressed model.
        comparisons: task -> both models on the same items.
        gate_report: every gate's outcome.
        parameters: the run's parameters, nested.
        provenance: shown in full; the keys `base_id`, `base_revision`, `git_commit`, `command` and `license`
            are also used where they are known.
        registered: what was registered, such as `moe-medical version 3 (alias candidate)`; None for nothing,
            empty if the registry was away.
        model_uri: how MLflow addresses it, such as `models:/moe-medical@candidate`.
        checkpoint: where the compressed checkpoint lies, as a reader would type it.
        data_docs: where Great Expectations' pages lie, as a reader would type it.
        flips: items whose answer changed from right to wrong or back.
        agreement: how far the plan depends on which demonstrations were seen; None where that was not told.
        background: what the plan was made from, to be drawn.
        other_plans: name -> another plan for the same base model, to measure overlap with.
        compatibility: what serving engines are expected to do with the checkpoint.
        targets: the domains of a mixture; none for a domain of its own.
        sweep: what the plan was chosen from; None where it was not chosen by a sweep.
        measured: everything gates could ask for.
        probes: predictions and routing beside the base's.
        speeds: of baseline and candidate; None where they were not timed.
        tuning: what tuning brought; None where nothing was tuned.
    """

    domain: str
    plan: CompressionPlan
    baseline: EvaluationResult
    candidate: EvaluationResult
    comparisons: Mapping[str, TaskComparison]
    gate_report: GateReport
    parameters: Mapping[str, Any] = field(default_factory=dict)
    provenance: Provenance = field(default_factory=dict)
    registered: str | None = None
    model_uri: str | None = None
    checkpoint: str | None = None
    data_docs: str | None = None
    flips: tuple[FlippedItem, ...] = ()
    agreement: Agreement | None = None
    background: PlanBackground = field(default_factory=PlanBackground)
    other_plans: Mapping[str, CompressionPlan] = field(default_factory=dict)
    compatibility: tuple[EngineVerdict, ...] = ()
    targets: tuple[str, ...] = ()
    sweep: SweepResult | None = None
    measured: Measurements = field(default_factory=lambda: Measurements({}))
    probes: ProbeResult = field(default_factory=ProbeResult)
    speeds: tuple[Throughput, Throughput] | None = None
    tuning: TuningReport | None = None

    def __post_init__(self) -> None:
        if self.gate_report.domain != self.domain:
            raise EvaluationError(
                f"the report is on '{self.domain}', its gates judged '{self.gate_report.domain}'; "
                "report each domain with its own gates"
            )
        check_same_layout({self.domain: self.plan, **self.other_plans})

    @property
    def target_names(self) -> tuple[str, ...]:
        """The domains the model was compressed for."""
        return self.targets or (self.domain,)

    @property
    def quality_rows(self) -> tuple[QualityRow, ...]:
        """One row per task or domain, the target domain first, then as compared, then perplexity alone."""
        before, after = self.baseline.perplexities, self.candidate.perplexities
        names = dict.fromkeys([*self.comparisons, *before, *after])
        rows = [
            QualityRow(
                name=name,
                is_target=name in self.target_names,
                comparison=self.comparisons.get(name),
                baseline_perplexity=before.get(name),
                candidate_perplexity=after.get(name),
            )
            for name in names
        ]
        return tuple(sorted(rows, key=lambda row: not row.is_target))

    @property
    def plans(self) -> dict[str, CompressionPlan]:
        """This run's plan under its domain's name, then the others."""
        others = {name: plan for name, plan in self.other_plans.items() if name != self.domain}
        return {self.domain: self.plan, **others}

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        outcomes, failures = self.gate_report.outcomes, self.gate_report.failures
        if not outcomes:
            return "Not validated: no gates were run"
        if failures:
            return f"Failed {len(failures)} of {wording.plural(len(outcomes), 'gate')}"
        warnings = sum(not outcome.passed for outcome in outcomes)
        if warnings:
            passed = f"Passed {len(outcomes) - warnings} of {wording.plural(len(outcomes), 'gate')}"
            return f"{passed}, with {wording.plural(warnings, 'warning')}"
        return f"Passed all {wording.plural(len(outcomes), 'gate')}"

    @property
    def release(self) -> str:
        """What became of the model, in one sentence."""
        if self.registered == "":
            return "Not registered yet, because the registry did not answer; kedro tracking sync registers it."
        return f"Registered as {self.registered}." if self.registered else "Nothing was registered."

    @property
    def experts_change(self) -> tuple[str, str]:
        """Experts per layer before and after: `64`, or `24 to 40` where layers differ."""
        counts = self.plan.layout.num_experts, self.plan.new_layout.num_experts
        return wording.span(counts[0]), wording.span(counts[1])

    @property
    def speed_change(self) -> str:
        """How much faster the largest batch is read."""
        if not (self.speeds and self.speeds[0].prefill):
            return wording.change(self.baseline.tokens_per_second, self.candidate.tokens_per_second)
        return wording.speed_change(self.speeds, "prefill", max(self.speeds[0].prefill))

    @property
    def summary(self) -> str:
        """The run's result on its own domain, or the worst of a mixture's, and on disk, in two sentences."""
        smaller = (
            f"Weights on disk went from {wording.size(self.baseline.num_bytes)} to "
            f"{wording.size(self.candidate.num_bytes)} "
            f"({wording.change(self.baseline.num_bytes, self.candidate.num_bytes)})."
        )
        compared = [self.comparisons[name] for name in self.target_names if name in self.comparisons]
        if not compared:
            return smaller
        # What is no finite number is worse than any, as it is for gates.
        worst = min(compared, key=lambda each: each.share_kept if math.isfinite(each.share_kept) else -math.inf)
        lead = f"Of {len(compared)} domains {worst.task} kept least. " if len(compared) > 1 else ""
        return f"{lead}{wording.accuracy_sentence(worst)} {smaller}"


def check_same_layout(plans: Mapping[str, CompressionPlan]) -> None:
    """Check that plans can be compared expert by expert.

    Raises:
        PlanError: if one was made for another layout.
    """
    layouts = {name: plan.layout for name, plan in plans.items()}
    first, *rest = layouts
    for name in rest:
        if layouts[name] != layouts[first]:
            raise PlanError(
                f"plan '{name}' is for another layout ({len(layouts[name].layers)} layers) than plan "
                f"'{first}' ({len(layouts[first].layers)} layers); compare plans of one base model"
            )


def measure_overlap(plans: Mapping[str, CompressionPlan]) -> FloatArray:
    """Return how much of each plan's choice the others share.

    Args:
        plans: name -> plan, all for one base model; P of them.

    Returns:
        `[P, P]`, the share in 0..1 of the row plan's kept experts, over all layers, that the column's keeps.

    Raises:
        PlanError: if the plans are for different layouts.
    """
    check_same_layout(plans)
    kept = [
        {(layer, expert) for layer, experts in enumerate(plan.kept) for expert in experts}
        for plan in plans.values()
    ]
    return np.array([[len(row & column) / len(row) for column in kept] for row in kept])


def chance_overlap(one: CompressionPlan, other: CompressionPlan) -> float:
    """Return the share in 0..1 of one plan's kept experts that another keeps which draws as many in each layer."""
    rows = zip(one.kept, other.kept, one.layout.num_experts, strict=True)
    shared = sum(len(kept) * len(others) / count for kept, others, count in rows)
    return shared / sum(map(len, one.kept))


def share_of_score_kept(plan: CompressionPlan) -> tuple[float, ...] | None:
    """Return per layer the share of the summed score that the kept experts hold, in 0..1.

    None where a share means nothing: without scores, with negative ones, or with a layer that sums to 0.
    """
    if plan.scores is None:
        return None
    counts = zip(plan.scores, plan.layout.num_experts, strict=True)
    rows = [scores_E[:count] for scores_E, count in counts]
    if any((row < 0).any() or not np.isfinite(row).all() or row.sum() == 0 for row in rows):
        return None
    return tuple(float(row[list(kept)].sum() / row.sum()) for row, kept in zip(rows, plan.kept, strict=True))


@dataclass(frozen=True)
class Drawing:
    """One figure, drawn for a wide screen and for a phone, with its words."""

    wide: Markup
    narrow: Markup
    alt: str
    shows: str
    means: str
