"""What trying many plans under a router mask showed, and which of them was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moe_compress.errors import EvaluationError
from moe_compress.types.identity import Provenance

Interval = tuple[float, float]


@dataclass(frozen=True)
class SweepEntry:
    """One method at one budget; shares are in 0..1.

    Attributes:
        method: the method.
        fraction_dropped: share of the experts that was to go.
        experts: experts kept per layer.
        plan_digest: of the plan.
        size_ratio: bytes of weights, pruned over base.
        num_items: items of the domain's task it was asked.
        num_right: those it answered rightly.
        interval: 95 % interval of that share.
        measured: metric -> finite value of what gates ask for; empty where it was dropped before the last round.
        failures: the gates it does not pass, in words.
        dropped_for: the method that was clearly better at its budget; None where it stayed to the end.
    """

    method: str
    fraction_dropped: float
    experts: tuple[int, ...]
    plan_digest: str
    size_ratio: float
    num_items: int
    num_right: int
    interval: Interval
    measured: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    dropped_for: str | None = None

    @property
    def accuracy(self) -> float:
        """Share of its items answered rightly."""
        return self.num_right / self.num_items

    @property
    def passes(self) -> bool:
        """Whether it was measured in full and passes every gate."""
        return self.dropped_for is None and bool(self.measured) and not self.failures


@dataclass(frozen=True)
class SweepCheck:
    """Whether hiding experts and writing the checkpoint without them give the same answers.

    Attributes:
        num_items: items asked of both.
        num_different: items on which they chose differently.
        largest: largest difference of a log-likelihood, in nats.
    """

    num_items: int
    num_different: int
    largest: float


@dataclass(frozen=True)
class SweepResult:
    """Every plan that was tried for one domain.

    Attributes:
        domain: the domain.
        base_right: items the base model answered rightly.
        num_items: items it was asked, and every plan that stayed to the end.
        base_interval: 95 % interval of that share.
        chance: accuracy of guessing.
        entries: what was tried.
        skipped: what was not tried -> why.
        not_judged: gates that a mask says nothing about.
        chosen: position of the smallest entry that passes; None where none does.
        check: of the chosen plan; None where none was chosen.
        provenance: where it came from.
    """

    domain: str
    base_right: int
    num_items: int
    base_interval: Interval
    chance: float
    entries: tuple[SweepEntry, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)
    not_judged: tuple[str, ...] = ()
    chosen: int | None = None
    check: SweepCheck | None = None
    provenance: Provenance = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chosen is not None and not self.entries[self.chosen].passes:
            raise EvaluationError(
                f"the sweep of '{self.domain}' chose {self.entries[self.chosen].method}, which does not pass its "
                "gates; run the sweep again"
            )

    @property
    def choice(self) -> SweepEntry | None:
        """The chosen entry."""
        return None if self.chosen is None else self.entries[self.chosen]

    @property
    def base_accuracy(self) -> float:
        """Share of the items the base model answered rightly."""
        return self.base_right / self.num_items

    @property
    def fractions(self) -> tuple[float, ...]:
        """The budgets that were tried, ascending."""
        return tuple(sorted({entry.fraction_dropped for entry in self.entries}))

    def best_at(self, fraction: float) -> SweepEntry:
        """Return the most accurate entry of one budget that stayed to the end."""
        stayed = [e for e in self.entries if e.fraction_dropped == fraction and e.dropped_for is None]
        return max(stayed, key=lambda entry: entry.accuracy)


def choose_smallest(entries: tuple[SweepEntry, ...]) -> int | None:
    """Return the position of the smallest entry that passes, the more accurate of equal ones; None for none."""
    passing = [place for place, entry in enumerate(entries) if entry.passes]
    return min(passing, key=lambda place: (entries[place].size_ratio, -entries[place].accuracy), default=None)
