"""Where an expert's neurons lie in its tensors: along which axis, and how gate and up are joined there.

An expert computes `down(act(gate x) * up x)`: its neurons may stand in any order, as long as it is the same in the
rows of gate and up, in their biases, and in the columns of down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from moe_compress.errors import PlanError

Order = NDArray[np.intp]

_DOWN = re.compile(r"down|output|(?<![a-z0-9])(w2|fc2)(?![a-z0-9])")


@dataclass(frozen=True)
class NeuronAxis:
    """Where one tensor of one expert has its neurons.

    Attributes:
        axis: the axis of the expert's own tensor.
        kind: `plain`: one entry per neuron; `halves`: all of gate, then all of up; `pairs`: gate and up in turn.
    """

    axis: int
    kind: Literal["plain", "halves", "pairs"] = "plain"

    def expand(self, order_N: Order) -> Order:
        """Return the order of the axis's entries that puts neurons into an order."""
        if self.kind == "halves":
            return np.concatenate([order_N, order_N + len(order_N)])
        if self.kind == "pairs":
            return np.stack([2 * order_N, 2 * order_N + 1], axis=1).reshape(-1)
        return order_N

    def by_neuron(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return a tensor as one row per neuron, `[N, -1]`."""
        first = np.moveaxis(values, self.axis, 0)
        if self.kind == "plain":
            return first.reshape(len(first), -1)
        if self.kind == "pairs":
            return first.reshape(len(first) // 2, -1)
        gate, up = np.split(first, 2)
        return np.concatenate([part.reshape(len(part), -1) for part in (gate, up)], axis=1)


def find_neurons(
    shapes: Mapping[str, tuple[int, ...]], is_interleaved: bool, are_linear: bool, hidden: int
) -> dict[str, NeuronAxis | None]:
    """Return where the neurons lie in each tensor of an expert; None where it has none, as in down's bias.

    Args:
        shapes: the expert's tensors, by the names they have in the checkpoint, without an axis for experts.
        is_interleaved: whether gate and up that are one tensor stand there in turn.
        are_linear: whether its matrices are those of linear layers, `[out, in]`; else their shapes have to tell.
        hidden: the size of the residual stream, where shapes alone allow both; 0 if it is not known.

    Raises:
        PlanError: if that cannot be told.
    """
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    downs = {shape for name, shape in matrices.items() if _is_down(name)}
    firsts = {shape for name, shape in matrices.items() if not _is_down(name)}
    if len(downs) != 1 or len(firsts) != 1:
        raise _not_known(next(iter(shapes)), f"shapes {sorted(firsts)} before {sorted(downs)}")
    first, down = firsts.pop(), downs.pop()
    first_axis, down_axis = (0, 1) if are_linear else _find_axes(first, down, hidden, next(iter(shapes)))
    count = down[down_axis]
    joined: Literal["halves", "pairs"] = "pairs" if is_interleaved else "halves"
    found: dict[str, NeuronAxis | None] = {}
    for name, shape in shapes.items():
        if len(shape) == 1 and _is_down(name):
            found[name] = None
            continue
        axis = 0 if len(shape) == 1 else down_axis if _is_down(name) else first_axis
        if len(shape) > 2 or shape[axis] not in (count, 2 * count):
            raise _not_known(name, f"shape {list(shape)} beside {count} neurons")
        found[name] = NeuronAxis(axis, "plain" if shape[axis] == count else joined)
    return found


def _is_down(name: str) -> bool:
    return bool(_DOWN.search(name.rpartition("experts.")[2]))


def _find_axes(first: tuple[int, ...], down: tuple[int, ...], hidden: int, name: str) -> tuple[int, int]:
    """Return the neuron axes of gate or up, and of down: of linear layers, of their transposes, or rows in both.

    Raises:
        PlanError: if the shapes allow more than one.
    """

    def fits(axes: tuple[int, int]) -> bool:
        first_axis, down_axis = axes
        count = down[down_axis]
        return first[1 - first_axis] == down[1 - down_axis] and first[first_axis] in (count, 2 * count)

    found = [axes for axes in ((0, 1), (1, 0)) if fits(axes)] or [axes for axes in ((0, 0),) if fits(axes)]
    if len(found) > 1:  # matrices of gate and up by themselves may be read either way
        found = [axes for axes in found if first[1 - axes[0]] == hidden]
    if len(found) != 1:
        raise _not_known(name, f"shapes {list(first)} before {list(down)}")
    return found[0]


def _not_known(name: str, why: str) -> PlanError:
    return PlanError(
        f"where the neurons lie in '{name}' is not known ({why}), so experts cannot be aligned; leave "
        "align_neurons false (select.parameters)"
    )
