"""Sends what the observer sees to the sums of the domain whose batch is running."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from moe_compress.collection.dense import Forward
from moe_compress.collection.inside import Inside
from moe_compress.collection.sums import RoutingSums
from moe_compress.types import RoutingBatch


class Adding:
    """Adds to one domain's sums at a time.

    Args:
        sums: domain -> its sums.

    Attributes:
        domain: the one whose batch is running.
    """

    def __init__(self, sums: Mapping[str, RoutingSums]) -> None:
        self._sums = sums
        self.domain = ""

    def record(self, row: int, batch: RoutingBatch) -> None:
        """Add what a layer did with a batch."""
        self._sums[self.domain].add(row, batch)

    def inspect(
        self, row: int, forward: Forward, inputs_TD: torch.Tensor, batch: RoutingBatch, inside: Inside
    ) -> None:
        """Gather what is needed of a batch besides the chosen experts' norms."""
        self._sums[self.domain].inspect(row, forward, inputs_TD, batch, inside)

    def finish(self) -> None:
        """Finish the layers that ran since the last time, while their weights are there, and the whole."""
        for sums in self._sums.values():
            sums.finish()
