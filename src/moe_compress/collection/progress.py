"""How far a collection is: a bar for people, and a record per layer for whoever tracks the run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10
"""Where nobody sees a bar move, such as in a log file; the end of each layer is a line in any case."""


@dataclass(frozen=True)
class LayerRecord:
    """What one decoder layer took, or the whole pass of a model that is loaded whole.

    Attributes:
        layer: the decoder layer.
        num_layers: decoder layers in all.
        seconds: from the end of the layer before to its own.
        tokens_per_second: tokens through this layer, per second.
        bytes_per_second: bytes read from the checkpoint meanwhile, per second.
    """

    layer: int
    num_layers: int
    seconds: float
    tokens_per_second: float
    bytes_per_second: float

    @property
    def seconds_left(self) -> float:
        """Until the last layer's end, if those to come are as fast."""
        return self.seconds * (self.num_layers - self.layer - 1)


class Progress:
    """A bar over all tokens of all layers, whose end it foretells.

    Args:
        num_tokens: tokens that pass each layer.
        num_layers: decoder layers in all.
        report: is given each layer's record.
    """

    def __init__(
        self, num_tokens: int, num_layers: int, report: Callable[[LayerRecord], None] | None = None
    ) -> None:
        self._num_tokens, self._num_layers = num_tokens, num_layers
        self._report = report or (lambda record: None)
        self._bar = tqdm(
            total=num_tokens * num_layers,
            unit="tok",
            unit_scale=True,
            desc="collect",
            mininterval=0.1 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES,
        )
        self._bytes = 0
        self._started, self._layer = time.perf_counter(), -1

    def start_layer(self, layer: int) -> None:
        """Start a layer's clock; layers before the first one started were finished by an earlier run."""
        if self._layer < 0 < layer:
            self._bar.initial = self._bar.n = layer * self._num_tokens
        self._layer = layer

    def add_tokens(self, num_tokens: int) -> None:
        """Move the bar on."""
        self._bar.update(num_tokens)

    def end_layer(self, num_bytes: int) -> None:
        """Report the layer; `num_bytes` is what was read since the collection started."""
        now = time.perf_counter()
        seconds = now - self._started
        read = (num_bytes - self._bytes) / seconds
        if self._num_layers > 1:
            self._bar.set_postfix_str(f"layer {self._layer + 1}/{self._num_layers}, reads {read / 1e6:.0f} MB/s")
        self._report(LayerRecord(self._layer, self._num_layers, seconds, self._num_tokens / seconds, read))
        self._bytes, self._started = num_bytes, now

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
