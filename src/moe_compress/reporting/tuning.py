"""What tuning brought: the base model, the pruned one and the tuned one on the same items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moe_compress.types import EvaluationResult, TaskComparison, TuningRecord


@dataclass(frozen=True)
class TuningRow:
    """One task before and after tuning.

    Attributes:
        name: the task.
        lost: the base model against the pruned one; None without a benchmark.
        regained: the pruned model against the tuned one; None without a benchmark.
        perplexities: of the base, the pruned and the tuned model; None without held-out text.
    """

    name: str
    lost: TaskComparison | None
    regained: TaskComparison | None
    perplexities: tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class TuningReport:
    """What a report tells of tuning.

    Attributes:
        record: what was trained on what, and how it went.
        pruned: what was measured before tuning.
        lost: task -> the base model against the pruned one, on the same items.
        regained: task -> the pruned model against the tuned one, on the same items.
    """

    record: TuningRecord
    pruned: EvaluationResult
    lost: Mapping[str, TaskComparison]
    regained: Mapping[str, TaskComparison]

    @property
    def lineage(self) -> dict[str, str]:
        """What a tuned model's lineage says besides a pruned one's."""
        return {"pruned_weights_digest": self.pruned.provenance["weights_digest"]}

    def as_metrics(self) -> dict[str, float]:
        """Return the numbers MLflow keeps of the model before it was tuned, and of the loss."""
        pruned, course = self.pruned, self.record.course
        return {
            **{f"pruned.perplexity.{name}": value for name, value in pruned.perplexities.items()},
            **{f"pruned.accuracy.{task}": pruned.accuracy(task) for task in pruned.tasks},
            "tuning.loss_before": course.loss_before,
            "tuning.loss_after": course.loss_after,
        }

    def rows(
        self, targets: Sequence[str], base: EvaluationResult, tuned: EvaluationResult
    ) -> tuple[TuningRow, ...]:
        """Return a row for each task, the targets' first.

        Args:
            targets: the domains tuned for.
            base: what was measured of the base model.
            tuned: what was measured after tuning.
        """
        results = (base, self.pruned, tuned)
        names = dict.fromkeys([*self.lost, *self.pruned.perplexities])
        rows = [
            TuningRow(
                name,
                self.lost.get(name),
                self.regained.get(name),
                tuple(result.perplexities.get(name) for result in results),  # type: ignore[arg-type]
            )
            for name in names
        ]
        return tuple(sorted(rows, key=lambda row: row.name not in targets))

    @property
    def summary(self) -> str:
        """How training went, in two or three sentences."""
        record, course = self.record, self.record.course
        share = record.num_trained / record.num_parameters
        what = f"LoRA of {share:.1%} as many" if record.adapted else f"{share:.0%} of the"
        texts = f"{record.num_training} texts, validated with {record.num_validation} others"
        trained = f"Trained {what} parameters on {texts}."
        if record.num_left_out:
            trained += f" {record.num_left_out} texts were left out: they hold what is measured with."
        last = course.steps[-1].step if course.steps else 0
        if not course.best_step:
            return f"{trained} In {last} steps no validation was better than before, so the weights are unchanged."
        return (
            f"{trained} The weights are those of step {course.best_step} of {last}: validation loss "
            f"{course.loss_before:.3f} before, {course.loss_after:.3f} after, in nats per token."
        )
