"""What was found of a candidate beside its base: predictions, routing, memory and speed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal


@dataclass(frozen=True)
class LayerProbe:
    """One layer's routing of the domain's held-out tokens; shares in 0..1.

    Attributes:
        layer: decoder layer index.
        drift: share of tokens whose top choice in the base is dropped.
        weight_lost: share of the base's gate weight that lay on dropped experts.
        variation: how unevenly the candidate uses its experts: standard deviation of their shares over the mean.
        peak: the candidate's largest share over the mean.
        base_variation: the same as `variation`, of the base and all its experts.
    """

    layer: int
    drift: float
    weight_lost: float
    variation: float
    peak: float
    base_variation: float


@dataclass(frozen=True)
class ProbeResult:
    """How a candidate differs from its base where no question is asked.

    Attributes:
        kl: domain -> mean KL(base || candidate) per held-out token, in nats.
        agreement: domain -> share of held-out tokens for which both find the same token likeliest.
        layers: routing, layer by layer; empty where it cannot be observed.
        changed_rows: where a router's row is not that of the expert it routes to; None where that cannot be told.
        left_out: why routing is not told; empty where it is.
        fault: why nothing could be measured; empty where it could.
    """

    kl: Mapping[str, float] = field(default_factory=dict)
    agreement: Mapping[str, float] = field(default_factory=dict)
    layers: tuple[LayerProbe, ...] = ()
    changed_rows: tuple[str, ...] | None = None
    left_out: str = ""
    fault: str = ""


@dataclass(frozen=True)
class Speed:
    """How fast a model was in passes of one kind.

    Attributes:
        tokens_per_second: in the fastest pass.
        spread: how much longer the median pass took, as a share of the fastest.
    """

    tokens_per_second: float
    spread: float = 0.0


@dataclass(frozen=True)
class Throughput:
    """How one model loads and runs, alone in a process of its own.

    Attributes:
        load_seconds: from the folder to a model that is ready.
        peak_bytes: the most memory that loading and running took.
        memory: of which kind: allocated on the GPU, or resident in the process beyond what it had before loading.
        prefill: sequences read at once -> how fast.
        decode: sequences written at once -> how fast.
        yardstick: how often per second the machine did, between the passes, work that is the same for all models.
    """

    load_seconds: float
    peak_bytes: float
    memory: Literal["gpu", "process"]
    prefill: Mapping[int, Speed]
    decode: Mapping[int, Speed]
    yardstick: float


UNTIMED = Throughput(float("nan"), float("nan"), "process", {}, {}, float("nan"))
"""What stands for a model that was not timed."""


def noise_of(speeds: Sequence[Throughput], kind: Literal["prefill", "decode"], size: int) -> float:
    """Return by what share the speeds of two equal models could have differed on the machine as it was.

    The passes of one model tell what changed while it ran, the yardstick what changed from one model to the other;
    they can all have gone the same way, so they multiply.
    """
    slow, fast = sorted(each.yardstick for each in speeds)
    spreads: list[float] = [getattr(each, kind)[size].spread for each in speeds]
    return fast / slow * prod(1 + spread for spread in spreads) - 1


def throughput_from_json(content: Mapping[str, Any]) -> Throughput:
    """Return a throughput from JSON, whose keys are texts where the sizes of batches are numbers."""
    kinds = ("prefill", "decode")
    by_size = {kind: {int(size): Speed(**speed) for size, speed in content[kind].items()} for kind in kinds}
    return Throughput(**{**content, **by_size})
