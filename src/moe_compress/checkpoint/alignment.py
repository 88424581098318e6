"""Neurons put in the order of the heaviest member's before experts are averaged, one new expert at a time.

Two experts whose neurons only stand in another order compute the same, and yet their average does not. The order is
the assignment with the largest sum of inner products of the neurons' weights: rows of gate and up, columns of down.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from moe_compress.checkpoint.arithmetic import decode_floats
from moe_compress.checkpoint.copying import read_bytes
from moe_compress.checkpoint.dequantise import decode_slabs
from moe_compress.checkpoint.jobs import Aligned, CodedMatrix, Decoded, Mean, TensorJob
from moe_compress.checkpoint.neurons import NeuronAxis, Order, find_neurons
from moe_compress.errors import PlanError
from moe_compress.types import TensorMap, TensorRole

Floats = NDArray[np.float32]
Descriptor = Callable[[str], int]

_BANK = re.compile(r"^.*\.\d+\.")


class Alignment:
    """The orders of one new expert's members, found when the first of its tensors is written and then kept.

    Held are the heaviest member and one other, in float32; what is kept is an order per member.

    """

    def __init__(self) -> None:
        self._tensors: list[Aligned] = []
        self._orders: list[Order | None] | None = None
        self._lock = Lock()

    def add(self, tensor: Aligned) -> None:
        """Let one more of its tensors count."""
        self._tensors.append(tensor)

    def orders(self, descriptor: Descriptor) -> list[Order | None]:
        """Return the order of each member's neurons, None for the member that sets it."""
        with self._lock:
            if self._orders is None:
                self._orders = self._find(descriptor)
            return self._orders

    def _find(self, descriptor: Descriptor) -> list[Order | None]:
        weights = self._tensors[0].parts.weights
        heaviest = int(np.argmax(weights))

        def read(member: int) -> list[Floats]:
            return [tensor.neurons.by_neuron(read_member(tensor, member, descriptor)) for tensor in self._tensors]

        wanted = read(heaviest)
        return [
            None if member == heaviest else match_neurons(wanted, read(member)) for member in range(len(weights))
        ]


def match_neurons(wanted: list[Floats], other: list[Floats]) -> Order:
    """Return for each neuron of one expert the neuron of another that belongs to it.

    Args:
        wanted: the first's tensors, each `[N, -1]`.
        other: the other's, in the same order.
    """
    from scipy.optimize import linear_sum_assignment  # a third of a second, which every command would wait for

    products_NN = sum(ours @ theirs.T for ours, theirs in zip(wanted, other, strict=True))
    return np.asarray(linear_sum_assignment(np.nan_to_num(products_NN), maximize=True)[1])


def read_member(tensor: Aligned, member: int, descriptor: Descriptor) -> Floats:
    """Return one member's tensor in float32."""
    if isinstance(tensor.parts, Mean):
        span = tensor.parts.ranges[member]
        content = read_bytes(descriptor(span.file), span.start, span.num_bytes, span.file)
        return decode_floats(content, tensor.dtype).reshape(tensor.shape)
    return _decode(tensor.parts.matrices[member], descriptor).reshape(tensor.shape)


def _decode(matrix: CodedMatrix, descriptor: Descriptor) -> Floats:
    codes, scales = matrix.codes, matrix.scales
    slabs = decode_slabs(
        matrix.code,
        lambda offset, length: read_bytes(descriptor(codes.file), codes.start + offset, length, codes.file),
        read_bytes(descriptor(scales.file), scales.start, scales.num_bytes, scales.file),
    )
    return np.concatenate(list(slabs))


def average_aligned(tensor: Aligned, descriptor: Descriptor) -> Floats:
    """Return a new expert's tensor: its members', neurons in one order, averaged in float32."""
    total = np.zeros(tensor.shape, np.float32)
    orders = tensor.alignment.orders(descriptor)
    for member, (weight, order_N) in enumerate(zip(tensor.parts.weights, orders, strict=True)):
        values = read_member(tensor, member, descriptor)
        if order_N is not None:
            values = values.take(tensor.neurons.expand(order_N), axis=tensor.neurons.axis)
        total += np.float32(weight) * values
    return total


def align_jobs(jobs: list[TensorJob], tensor_map: TensorMap, hidden: int) -> list[TensorJob]:
    """Return the jobs with merged experts' tensors marked to be aligned; reads nothing.

    Args:
        jobs: what would be written without.
        tensor_map: what each source tensor is.
        hidden: the size of the residual stream, 0 if it is not known.

    Raises:
        PlanError: if where the neurons lie in an expert's tensors cannot be told.
    """
    roles = {weight: tensor_map.roles[part] for part, weight in tensor_map.parts.items()} | dict(tensor_map.roles)
    banks: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
    for job in jobs:
        role = roles[job.name]
        if _is_expert(role):
            banks[_bank_of(job.name, tensor_map)][_stem_of(job.name, tensor_map)] = _own_shape(job, role)
    are_linear = bool(tensor_map.expert_spans)  # one tensor per expert is one linear layer's
    neurons = {
        bank: find_neurons(shapes, tensor_map.is_interleaved, are_linear, hidden) for bank, shapes in banks.items()
    }
    alignments: dict[tuple[str, int], Alignment] = defaultdict(Alignment)
    aligned = []
    for job in jobs:
        role = roles[job.name]
        bank = _bank_of(job.name, tensor_map)
        axis = neurons[bank][_stem_of(job.name, tensor_map)] if _is_expert(role) else None
        aligned.append(job if axis is None else _align_job(job, role, axis, alignments, bank, tensor_map))
    return aligned


def _align_job(
    job: TensorJob,
    role: TensorRole,
    axis: NeuronAxis,
    alignments: dict[tuple[str, int], Alignment],
    bank: str,
    tensor_map: TensorMap,
) -> TensorJob:
    """Return a job whose averages are aligned with the other tensors of the same new expert."""
    if role.kind == "expert":
        start, end = tensor_map.expert_spans[job.name]
        first = int(job.name[start:end])
    else:
        first = 0
    pieces = []
    for new, piece in enumerate(job.pieces, first):
        if isinstance(piece, Mean | Decoded) and len(piece.weights) > 1:
            piece = Aligned(piece, job.dtype, _own_shape(job, role), axis, alignments[bank, new])
            alignments[bank, new].add(piece)
        pieces.append(piece)
    return replace(job, pieces=tuple(pieces))


def _is_expert(role: TensorRole) -> bool:
    return role.kind != "untouched" and not role.is_router


def _own_shape(job: TensorJob, role: TensorRole) -> tuple[int, ...]:
    """Return the shape of one expert's part of a tensor.

    Raises:
        PlanError: if experts do not lie one after the other.
    """
    if role.kind == "expert":
        return job.shape
    if role.axis != 0:
        raise PlanError(
            f"'{job.name}' has its experts along axis {role.axis}, where they are not aligned; leave align_neurons "
            "false (select.parameters)"
        )
    return (role.rows_per_expert, *job.shape[1:]) if role.rows_per_expert > 1 else job.shape[1:]


def _bank_of(name: str, tensor_map: TensorMap) -> str:
    """Return what the names of all experts of one layer, or of one of the layers after the last, begin with."""
    start, _ = tensor_map.expert_spans.get(name, (len(name), 0))
    found = _BANK.match(name[:start])
    return found[0] if found else ""


def _stem_of(name: str, tensor_map: TensorMap) -> str:
    """Return a tensor's name without its expert's number."""
    start, end = tensor_map.expert_spans.get(name, (0, 0))
    return name[:start] + name[end:]
