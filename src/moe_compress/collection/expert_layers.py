"""Where a model has routed experts: one entry a decoder layer, with how its family departs from the rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.departures import Departure, find_departure


@dataclass(frozen=True)
class ExpertLayer:
    """One decoder layer with routed experts.

    Attributes:
        row: its position among the layers with routed experts.
        name: the experts' path in the model.
        decoder_layer: the layer.
        owner: the module that holds the experts: the MoE block, or the decoder layer itself.
        experts: the module that runs the routed experts.
        departure: how the family departs from the common shape.
        family: the model type.
    """

    row: int
    name: str
    decoder_layer: nn.Module
    owner: nn.Module
    experts: nn.Module
    departure: Departure
    family: str

    @property
    def block(self) -> nn.Module:
        """The module that a norm feeds: the MoE block, or the experts where there is no block around them."""
        return self.experts if self.owner is self.decoder_layer else self.owner


def find_layers(model: Any) -> list[ExpertLayer]:
    """Return the decoder layers with routed experts, in order.

    Raises:
        UnsupportedModelError: if there are none, or what they do cannot be told.
    """
    family = model.config.get_text_config().model_type
    departure = find_departure(family)
    why = departure.refused or departure.unobserved
    if why:
        raise UnsupportedModelError(
            f"the routing of '{family}' cannot be observed: {why}; choose a model of another family"
        )
    # A vision tower may have experts too; they are not the text model's.
    of_text = {id(module) for module in model.get_decoder().modules()}
    found: list[ExpertLayer] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] != "experts" or not hasattr(module, "num_experts") or id(module) not in of_text:
            continue
        index = max((place for place, part in enumerate(parts) if part.isdigit()), default=0)
        decoder_layer = model.get_submodule(".".join(parts[: index + 1]))
        owner = model.get_submodule(".".join(parts[:-1]))
        found.append(ExpertLayer(len(found), name, decoder_layer, owner, module, departure, family))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer with routed experts; give a Mixture-of-Experts checkpoint"
        )
    return found
