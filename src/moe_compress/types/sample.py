"""What a layer gave for a sample of tokens on which all of its experts ran, and what its router would do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moe_compress.types.layout import MoELayout

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExpertProducts:
    """Inner products of all experts' outputs on `N` tokens; the outputs themselves, `[N, E, D]`, are not kept.

    Attributes:
        logits_NE: router logits.
        gram_NEE: `e_it . e_jt`, float32 or float64.
        stream_dot_NE: `h_t . e_it`.
        stream_sq_N: `||h_t||^2`, float64.
    """

    logits_NE: torch.Tensor
    gram_NEE: torch.Tensor
    stream_dot_NE: torch.Tensor
    stream_sq_N: torch.Tensor

    @classmethod
    def of(cls, stream_ND: torch.Tensor, logits_NE: torch.Tensor, outputs_NED: torch.Tensor) -> ExpertProducts:
        """Return the products of a batch of tokens; batches join with `join`. They are float32 at least."""
        if outputs_NED.element_size() < 4:
            outputs_NED = outputs_NED.float()
        stream_ND = stream_ND.to(outputs_NED.dtype)
        return cls(
            logits_NE,
            outputs_NED @ outputs_NED.transpose(1, 2),
            (outputs_NED @ stream_ND[:, :, None])[:, :, 0],
            (stream_ND.double() ** 2).sum(dim=1),
        )

    @classmethod
    def join(cls, samples: Sequence[ExpertProducts]) -> ExpertProducts:
        """Return the products of all tokens."""
        import torch  # the values are loaded where nothing else needs it

        names = ("logits_NE", "gram_NEE", "stream_dot_NE", "stream_sq_N")
        return cls(*(torch.cat([getattr(sample, name) for sample in samples]) for name in names))


@dataclass(frozen=True)
class RouterTrial:
    """What a layer's own router did with some of its experts hidden.

    Attributes:
        logits_NE: router logits of the tokens tried, with all experts there.
        there_E: which experts were there, bool.
        gates_NE: the gate weights, 0 for experts not picked.
    """

    logits_NE: torch.Tensor
    there_E: torch.Tensor
    gates_NE: torch.Tensor


@dataclass(frozen=True)
class LayerSample:
    """One layer's sample.

    Attributes:
        family: the model type.
        name: the layer's experts, for messages.
        layout: how its router picks.
        products: what all experts gave, on the stream's scale.
        trials: what its router does with experts hidden; the first has all experts there.
        biases: what the router may add to scores for the choice alone, `[E]` each.
    """

    family: str
    name: str
    layout: MoELayout
    products: ExpertProducts
    trials: tuple[RouterTrial, ...]
    biases: tuple[torch.Tensor, ...] = ()


class Reduction(Protocol):
    """What a method makes of a layer's sample; its `repr` says all that it depends on besides."""

    def __call__(self, sample: LayerSample) -> Mapping[str, torch.Tensor]:
        """Return statistic -> float64 `[E]`."""
