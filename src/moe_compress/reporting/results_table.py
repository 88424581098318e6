"""The table of methods as numbers: every figure with an interval, and every comparison on the same items.

A benchmark's items are drawn again a few thousand times, the same draws for all plans. Whatever is computed for
each draw, an average over domains or the difference of two methods, so comes with a paired bootstrap interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from moe_compress.types import MIXED, CompressionPlan, FloatArray, LeftOut, Measurement, TrialKey

Kind = Literal["own", "mixed"]
"""Whether a plan was made for the domain it is measured on, or for all at once."""

NUM_DRAWS = 2000


class Estimate(NamedTuple):
    """A figure and its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws_R: FloatArray) -> Estimate:
        """Return the first of the draws, which is what was measured, and the interval of the others.

        A draw that is not defined, because the base only guesses on its items, may be anything: it counts at both
        ends, as in `evaluation.compare`. So a bound is infinite where too many are.
        """
        others_R, undefined_R = draws_R[1:], np.isnan(draws_R[1:])
        low = np.quantile(np.where(undefined_R, -np.inf, others_R), 0.025, method="inverted_cdf")
        high = np.quantile(np.where(undefined_R, np.inf, others_R), 0.975, method="inverted_cdf")
        return cls(float(draws_R[0]), float(low), float(high))

    @property
    def is_bounded(self) -> bool:
        """Whether both ends of the interval are known."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True)
class Cell:
    """One row on one domain, averaged over the row's seeds."""

    accuracy: Estimate
    kept: Estimate
    perplexity: float
    kl: float
    num_parameters: float


@dataclass(frozen=True)
class ResultsTable:
    """All measurements of all plans.

    Attributes:
        base: domain -> what the base model does.
        found: (key of a plan, domain measured) -> what it keeps.
        plans: key -> plan.
        chance: domain -> accuracy of guessing.
        left_out: what could not be had, and why.
        compared: the row whose plans are compared between domains.
        seed: of the draws.
    """

    base: Mapping[str, Measurement]
    found: Mapping[tuple[TrialKey, str], Measurement]
    plans: Mapping[TrialKey, CompressionPlan]
    chance: Mapping[str, float]
    left_out: Sequence[LeftOut] = ()
    compared: str = "easy_ep"
    seed: int = 0
    _means: dict[tuple[str, Kind, float], FloatArray] = field(default_factory=dict, repr=False)

    @property
    def domains(self) -> tuple[str, ...]:
        """The domains, in order."""
        return tuple(self.base)

    @cached_property
    def guessed(self) -> tuple[str, ...]:
        """The domains on which the base model is no better than guessing, so that there is no share to keep."""
        return tuple(d for d in self.domains if self.base[d].accuracy <= self.chance[d])

    @cached_property
    def fractions(self) -> tuple[float, ...]:
        """The fractions dropped, ascending."""
        return tuple(sorted({key.fraction for key in self.plans}))

    def rows(self, kind: Kind, fraction: float) -> list[str]:
        """Return the rows that have plans of a kind for every domain, the best first."""
        names = dict.fromkeys(key.row for key in self.plans)
        have = [name for name in names if all(self._keys(name, kind, d, fraction) for d in self.domains)]
        return sorted(have, key=lambda row: -self.mean_kept(row, kind, fraction)[0])

    def merges(self, row: str) -> bool:
        """Return whether some plan of a row merges experts."""
        return any(not plan.is_pruning for key, plan in self.plans.items() if key.row == row)

    def cell(self, row: str, made_for: str, fraction: float, domain: str) -> Cell:
        """Return what a row keeps of a domain."""
        found = self._measured(self._keys_for(row, made_for, fraction), domain)
        kept_R = self._kept(found, domain)
        return Cell(
            accuracy=Estimate.of(self._accuracy(found, domain)),
            kept=Estimate.of(kept_R),
            perplexity=float(np.mean([each.perplexity for each in found])),
            kl=float(np.mean([each.kl for each in found])),
            num_parameters=float(np.mean([each.num_parameters for each in found])),
        )

    def has(self, row: str, made_for: str, fraction: float, domain: str) -> bool:
        """Return whether a row was measured on a domain."""
        keys = self._keys_for(row, made_for, fraction)
        return bool(keys) and all((key, domain) in self.found for key in keys)

    def kept(self, row: str, kind: Kind, fraction: float, domain: str) -> FloatArray:
        """Return per draw the share of the base's accuracy above chance that is kept on a domain, `[1 + R]`."""
        return self._kept(self._measured(self._keys(row, kind, domain, fraction), domain), domain)

    def mean_kept(self, row: str, kind: Kind, fraction: float) -> FloatArray:
        """Return per draw the mean over domains of the share kept, `[1 + R]`; the first is what was measured."""
        place = (row, kind, fraction)
        if place not in self._means:
            self._means[place] = np.mean([self.kept(row, kind, fraction, d) for d in self.domains], axis=0)
        return self._means[place]

    def mean_kl(self, row: str, kind: Kind, fraction: float) -> float:
        """Return the mean over domains of KL to the base."""
        return float(np.mean([self._cell_of(row, kind, fraction, domain).kl for domain in self.domains]))

    def mean_parameters(self, row: str, kind: Kind, fraction: float) -> float:
        """Return the parameters left; plans of one row for different domains may differ a little."""
        return float(
            np.mean([self._cell_of(row, kind, fraction, domain).num_parameters for domain in self.domains])
        )

    def _cell_of(self, row: str, kind: Kind, fraction: float, domain: str) -> Cell:
        return self.cell(row, domain if kind == "own" else MIXED, fraction, domain)

    def _keys(self, row: str, kind: Kind, domain: str, fraction: float) -> list[TrialKey]:
        return self._keys_for(row, domain if kind == "own" else MIXED, fraction)

    def _keys_for(self, row: str, made_for: str, fraction: float) -> list[TrialKey]:
        return [key for key in self.plans if key[:3] == (row, made_for, fraction)]

    def _measured(self, keys: Iterable[TrialKey], domain: str) -> list[Measurement]:
        return [self.found[key, domain] for key in keys]

    def _accuracy(self, found: Sequence[Measurement], domain: str) -> FloatArray:
        right_N = np.mean([each.right for each in found], axis=0)
        drawn_RN = self._draws[domain]
        shares_R: FloatArray = drawn_RN @ right_N / len(right_N)
        return shares_R

    def _kept(self, found: Sequence[Measurement], domain: str) -> FloatArray:
        chance = self.chance[domain]
        before_R = self._accuracy([self.base[domain]], domain)
        above_R: FloatArray = np.where(before_R > chance, before_R - chance, np.nan)
        kept_R: FloatArray = (self._accuracy(found, domain) - chance) / above_R
        return kept_R

    @cached_property
    def _draws(self) -> dict[str, FloatArray]:
        """Domain -> how often each draw has each item, `[1 + R, N]`; the first has each once."""
        random = np.random.default_rng(self.seed)
        drawn = {}
        for domain, measured in self.base.items():
            items = len(measured.right)
            counts_RN = random.multinomial(items, np.full(items, 1 / items), NUM_DRAWS)
            drawn[domain] = np.concatenate([np.ones((1, items)), counts_RN])
        return drawn
