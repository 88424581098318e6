"""Sums kept apart by demonstrations: two random halves, and how many demonstrations it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from moe_compress.errors import StatisticsError
from moe_compress.types.identity import FloatArray

CURVE = (1, 2, 5, 10, 25, 50)
"""Numbers of demonstrations after which the sums so far can be told, besides all of them."""

_SEED = 42


def part_ends(num_demonstrations: int) -> tuple[int, ...]:
    """Return the numbers of demonstrations at which a stretch ends: those of `CURVE`, then all of them."""
    return (*(end for end in CURVE if end < num_demonstrations), num_demonstrations)


def assign_parts(num_demonstrations: int) -> NDArray[np.int64]:
    """Return each demonstration's part, int64 `[num_demonstrations]`, below `2 * len(part_ends(...))`.

    Demonstrations are shuffled once, by a seed and their number alone. A place in that order says which half
    (even or odd) and which stretch (before which of `part_ends`): part = stretch * 2 + half.
    """
    order = np.random.default_rng([_SEED, num_demonstrations]).permutation(num_demonstrations)
    places = np.empty_like(order)
    places[order] = np.arange(num_demonstrations)
    return np.searchsorted(part_ends(num_demonstrations), places, side="right") * 2 + places % 2


def add_in_order(values: Sequence[FloatArray] | FloatArray) -> FloatArray:
    """Return the sum over the first axis, always added in the same order, so that it repeats to the bit."""
    return reduce(np.add, values)


@dataclass(frozen=True)
class StatisticsParts:
    """The sums of a domain in `P = 2 * len(ends)` parts, numbered as `assign_parts` says.

    Attributes:
        ends: how many demonstrations of the shuffled order each stretch ends at, ascending.
        sums: name -> float64 `[P, L, E]`.
        num_tokens: tokens of each part, length P.
        num_demonstrations: demonstrations of each part, length P.
    """

    ends: tuple[int, ...]
    sums: Mapping[str, FloatArray]
    num_tokens: tuple[int, ...]
    num_demonstrations: tuple[int, ...]

    def __post_init__(self) -> None:
        num_parts = 2 * len(self.ends)
        lengths = {len(self.num_tokens), len(self.num_demonstrations), *(len(sums) for sums in self.sums.values())}
        if lengths != {num_parts}:
            raise StatisticsError(
                f"parts that end at {list(self.ends)} demonstrations must be {num_parts} of everything, "
                f"got {sorted(lengths)}; collect the statistics again"
            )

    def __add__(self, other: StatisticsParts) -> StatisticsParts | None:
        """Return the parts over both sets of tokens, or None where they end at different numbers."""
        if self.ends != other.ends or set(self.sums) != set(other.sums):
            return None
        return StatisticsParts(
            self.ends,
            {name: values + other.sums[name] for name, values in self.sums.items()},
            tuple(np.add(self.num_tokens, other.num_tokens).tolist()),
            tuple(np.add(self.num_demonstrations, other.num_demonstrations).tolist()),
        )

    def of_half(self, half: int) -> tuple[int, ...]:
        """Return the parts that make up half 0 or half 1."""
        return tuple(range(half, 2 * len(self.ends), 2))

    def of_first(self, num_demonstrations: int) -> tuple[int, ...]:
        """Return the parts that hold the first demonstrations of the shuffled order.

        Raises:
            StatisticsError: if no stretch ends there.
        """
        if num_demonstrations not in self.ends:
            raise StatisticsError(
                f"the sums of the first {num_demonstrations} demonstrations were not kept apart; "
                f"ask for one of {', '.join(map(str, self.ends))}"
            )
        return tuple(range(2 * (self.ends.index(num_demonstrations) + 1)))
