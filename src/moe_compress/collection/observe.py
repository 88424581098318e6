"""See what one MoE layer really did, through transformers' experts interface, for any family that uses it.

The observing implementation calls the stock one with every token-expert pair as its own token of gate weight
1, which yields each expert's bare output from the same kernels in the same order, and then applies the
model's own gate weights the way the stock code does. So the forward pass stays bit-identical, only routed
pairs run, and no family needs code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_compress.collection.batches import Batch
from moe_compress.errors import UnsupportedModelError
from moe_compress.types import RoutingBatch

OBSERVED = "moe_compress_observed"
Record = Callable[[int, RoutingBatch], None]


class _Layer:
    """One decoder layer's experts, and what its hooks saw on the way to them."""

    def __init__(self, row: int, name: str, decoder_layer: nn.Module, block: nn.Module, experts: nn.Module):
        self.row, self.name = row, name
        self.decoder_layer, self.block, self.experts = decoder_layer, block, experts
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.residual_TD: torch.Tensor | None = None
        self.router_logits_TE: torch.Tensor | None = None

    def hooks(self) -> Iterator[Any]:
        """Register the hooks that find the residual stream and the router's logits; yield their handles."""
        for child in self.decoder_layer.children():
            if child is not self.block:
                yield child.register_forward_hook(self._remember)
        yield self.block.register_forward_pre_hook(self._find_residual)
        for child in self.block.children():
            if child is not self.experts:
                yield child.register_forward_hook(self._find_logits)

    def _remember(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and isinstance(output, torch.Tensor):
            self.seen.append((inputs[0], output))

    def _find_residual(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The residual stream is what entered the norm whose output is the block's input."""
        entering = [before for before, after in self.seen if after is inputs[0]]
        self.seen.clear()
        if not entering:
            raise UnsupportedModelError(
                f"no norm feeds {self.name}'s MoE block directly, so its residual stream cannot be told; "
                "this family needs a file in families/ that says where it is"
            )
        self.residual_TD = entering[-1].reshape(-1, entering[-1].shape[-1])

    def _find_logits(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 3:
            self.router_logits_TE = output[0].reshape(-1, output[0].shape[-1])


@contextmanager
def observe(model: Any, record: Record) -> Iterator[Callable[[Batch], None]]:
    """Call `record(row, RoutingBatch)` for each MoE layer of each forward pass inside the block.

    Args:
        model: a transformers model; left as it was afterwards.
        record: receives the layer's position among the layers with experts, and what it did.

    Yields:
        a function to be given each batch before its forward pass.

    Raises:
        UnsupportedModelError: if the family's experts do not go through the interface.
    """
    layers = {id(layer.experts): layer for layer in find_layers(model)}
    stock_name = model.config._experts_implementation
    current: list[Batch] = []

    def observed(
        experts: nn.Module, hidden_TD: torch.Tensor, ids_TK: torch.Tensor, weights_TK: torch.Tensor
    ) -> torch.Tensor:
        stock = ALL_EXPERTS_FUNCTIONS.get_interface(stock_name, vars(type(experts))["forward"].__wrapped__)
        outputs_TKD = bare_outputs(stock, experts, hidden_TD, ids_TK, weights_TK)
        routed_TD = (outputs_TKD * weights_TK.unsqueeze(-1)).sum(dim=1).to(hidden_TD.dtype)
        layer = layers[id(experts)]
        record(layer.row, _routing_batch(layer, current[0], ids_TK, weights_TK, outputs_TKD, routed_TD))
        return routed_TD

    def set_batch(batch: Batch) -> None:
        current[:] = [batch]

    ALL_EXPERTS_FUNCTIONS.register(OBSERVED, observed)
    with ExitStack() as stack:
        for layer in layers.values():
            for handle in layer.hooks():
                stack.callback(handle.remove)
        model.set_experts_implementation(OBSERVED)
        stack.callback(model.set_experts_implementation, stock_name)
        # The registry lives as long as the process; what it holds must not keep the model alive.
        stack.callback(layers.clear)
        yield set_batch


def find_layers(model: Any) -> list[_Layer]:
    """Return the decoder layers with routed experts, in order.

    Raises:
        UnsupportedModelError: if there are none, or they bypass the experts interface.
    """
    found: list[_Layer] = []
    for name, module in model.named_modules():
        parts = name.split(".")
        if parts[-1] != "experts" or not hasattr(module, "num_experts"):
            continue
        if not hasattr(module, "_is_expert_parallel"):
            raise UnsupportedModelError(
                f"{type(model).__name__} runs {name} outside transformers' experts interface, so its routing "
                "cannot be observed; this family needs a file in families/"
            )
        index = max(i for i, part in enumerate(parts) if part.isdigit())
        decoder_layer = model.get_submodule(".".join(parts[: index + 1]))
        block = model.get_submodule(".".join(parts[:-1]))
        found.append(_Layer(len(found), name, decoder_layer, block, module))
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no layer with routed experts; give a Mixture-of-Experts checkpoint"
        )
    return found


def bare_outputs(
    stock: Callable[..., torch.Tensor],
    experts: nn.Module,
    hidden_TD: torch.Tensor,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
) -> torch.Tensor:
    """Return each chosen expert's output before its gate weight, `[T, K, D]`, by the stock implementation."""
    top_k = ids_TK.shape[1]
    pairs_ND = hidden_TD.repeat_interleave(top_k, dim=0)
    ones_N1 = torch.ones_like(weights_TK).reshape(-1, 1)
    return stock(experts, pairs_ND, ids_TK.reshape(-1, 1), ones_N1).reshape(-1, top_k, hidden_TD.shape[-1])


def _routing_batch(
    layer: _Layer,
    batch: Batch,
    ids_TK: torch.Tensor,
    weights_TK: torch.Tensor,
    outputs_TKD: torch.Tensor,
    routed_TD: torch.Tensor,
) -> RoutingBatch:
    """Return what the layer did with the real tokens of a batch."""
    if layer.residual_TD is None or layer.router_logits_TE is None:
        raise UnsupportedModelError(
            f"{layer.name} was reached without its router's logits or residual stream; "
            "this family needs a file in families/"
        )
    keep_T = batch.mask_BS.reshape(-1).bool().to(ids_TK.device)
    demonstrations_T = batch.demonstrations_B.repeat_interleave(batch.mask_BS.shape[1]).to(ids_TK.device)
    residual_TD = layer.residual_TD[keep_T].double()
    after_TD = residual_TD + routed_TD[keep_T].double()
    return RoutingBatch(
        expert_ids_TK=ids_TK[keep_T],
        gate_weights_TK=weights_TK[keep_T],
        output_norms_TK=torch.linalg.vector_norm(outputs_TKD[keep_T], dim=-1, dtype=torch.float64),
        residual_change_T=1 - nn.functional.cosine_similarity(residual_TD, after_TD, dim=-1),
        router_logits_TE=layer.router_logits_TE[keep_T],
        demonstrations_T=demonstrations_T[keep_T],
    )
