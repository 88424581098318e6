"""The table of methods: what was planned for which domains, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from moe_compress.types.plan import CompressionPlan

MIXED = "mixed"
"""Stands for all domains together where a plan is made for them at once."""


class TrialKey(NamedTuple):
    """Names one plan of the table.

    Attributes:
        row: the method, or what a variant of one is called.
        made_for: the domain whose statistics it was made from, or `MIXED`.
        fraction: share of the experts dropped.
        seed: of the plan.
    """

    row: str
    made_for: str
    fraction: float
    seed: int


@dataclass(frozen=True)
class Trial:
    """A plan and the domains it is tried on."""

    key: TrialKey
    plan: CompressionPlan
    domains: tuple[str, ...]


@dataclass(frozen=True)
class LeftOut:
    """What the table was asked for and does not have.

    Attributes:
        row: the row, or `row, mixed` where only its mixed plan is missing.
        reason: in words.
    """

    row: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """What one plan keeps of one domain.

    Attributes:
        right: per benchmark item, in the task's order, whether it was answered rightly.
        perplexity: per token, on held-out text; NaN where the domain has none.
        kl: mean over held-out tokens of KL(base || candidate), in nats; NaN where the domain has none.
        num_parameters: parameters of the whole model.
    """

    right: tuple[bool, ...]
    perplexity: float
    kl: float
    num_parameters: int

    @property
    def accuracy(self) -> float:
        """The share of items answered rightly, in 0..1."""
        return sum(self.right) / len(self.right)
