"""Watch one decoder layer: its router's logits, its experts' call, the residual stream, and what is added to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from moe_compress.collection.contribution import pass_through
from moe_compress.collection.expert_layers import ExpertLayer
from moe_compress.collection.experts_call import ExpertsCall, Forward, call_experts, call_input_scaled_experts
from moe_compress.errors import UnsupportedModelError


class LayerWatch:
    """What one decoder layer showed during the forward pass that is under way.

    Attributes:
        layer: the layer that is watched.
        run_experts: the experts' own forward, unwatched.
        call: what the experts did.
        entered: what the decoder layer was given, as far as it is a tensor.
        block_input: what the block around the router and the experts was given.
    """

    def __init__(self, layer: ExpertLayer, finish: Callable[[LayerWatch], None]) -> None:
        self.layer = layer
        self.run_experts: Forward = layer.experts.forward
        self._finish = finish
        self._has_called = False
        self._forget()

    def _forget(self) -> None:
        self.call: ExpertsCall | None = None
        self.entered: torch.Tensor | None = None
        self.block_input: torch.Tensor | None = None
        self._last_child: tuple[torch.Tensor, Any] | None = None
        self._residual: torch.Tensor | None = None
        self._stream_weights: torch.Tensor | None = None
        self._contribution: torch.Tensor | None = None
        self._routed: tuple[Any, ...] | torch.Tensor | None = None

    @property
    def router_logits_TE(self) -> torch.Tensor:
        """The router's logits, or the logarithms of its probabilities, which have the same softmax.

        Raises:
            UnsupportedModelError: if no router was seen.
        """
        output = self._routed
        if output is None:
            raise UnsupportedModelError(
                f"{self.layer.name} was reached without its router's logits; "
                "this family needs a file in families/departures/"
            )
        if isinstance(output, tuple):
            output = output[1] if self.layer.departure.scales_input else output[0]
        logits_TE: torch.Tensor = output.reshape(-1, output.shape[-1])
        return logits_TE.log() if self.layer.departure.are_logits_probabilities else logits_TE

    def before_and_added(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream `[T, D]` and what the routed experts add to it, `[T, D]`.

        With several streams, those of a token stand side by side: `[T, N * D]`.

        Raises:
            UnsupportedModelError: if the residual stream was not found.
        """
        if self._residual is None or self._contribution is None:
            raise UnsupportedModelError(
                f"no norm feeds the MoE block of {self.layer.name} directly, so its residual stream is "
                "unknown; this family needs a file in families/departures/ that says where it is"
            )
        before, added = self._residual, self._contribution.reshape(-1, self._contribution.shape[-1])
        if self._stream_weights is not None:
            added = self._stream_weights.flatten(0, -2).unsqueeze(-1) * added.unsqueeze(1)
            return before.reshape(len(added), -1), added.flatten(1)
        before = before.reshape(-1, before.shape[-1])
        of_before, of_added = self.layer.departure.stream_scales(self.layer.decoder_layer)
        is_plain = isinstance(of_before, float) and of_before == of_added == 1.0
        return (before, added) if is_plain else (of_before * before.float(), of_added * added.float())

    def begin(self, stack: ExitStack) -> None:
        """Put the hooks and the watched call in place until the stack closes."""
        for handle in self._hooks():
            stack.callback(handle.remove)
        # On this one module, whatever its implementation and whoever else wrapped it; its class stays untouched.
        experts = self.layer.experts
        previous = vars(experts).get("forward")
        experts.forward = self._call
        if previous is None:
            stack.callback(delattr, experts, "forward")
        else:
            stack.callback(setattr, experts, "forward", previous)

    def _hooks(self) -> Iterator[RemovableHandle]:
        layer, departure = self.layer, self.layer.departure
        yield layer.decoder_layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True)
        yield layer.block.register_forward_pre_hook(self._enter_block)
        yield layer.owner.register_forward_hook(self._leave_owner)
        for name, child in layer.decoder_layer.named_children():
            if child is not layer.block:
                yield child.register_forward_hook(self._pass_child)
            if departure.residual_child and name == departure.residual_child[0]:
                yield child.register_forward_pre_hook(self._enter_mixing)
            if departure.streams and name == departure.streams[0]:
                yield child.register_forward_hook(self._mix_streams)
        for child in layer.owner.children():
            if child is not layer.experts:
                yield child.register_forward_hook(self._leave_router)
        for position, (path, _) in enumerate(departure.passages):
            module = layer.decoder_layer.get_submodule(path)
            yield module.register_forward_hook(partial(self._pass, position), with_kwargs=True)

    def _call(self, *inputs: torch.Tensor) -> torch.Tensor:
        if self.layer.departure.scales_input:
            router: Any = self.layer.owner.router
            scores_TE = self._routed[0]  # type: ignore[index]
            output, call = call_input_scaled_experts(self.run_experts, inputs[0], scores_TE, router.top_k)
        else:
            output, call = call_experts(self.layer.experts, self.run_experts, *inputs)
        self.call, self._has_called = call, True
        scale = self.layer.departure.routed_scale(self.layer.decoder_layer)
        self._contribution = call.routed_TD if scale == 1.0 else call.routed_TD * scale
        if not self.layer.departure.passages:
            self._show()
        return output

    def _pass(
        self, position: int, module: nn.Module, inputs: tuple[Any, ...], kwargs: Any, output: torch.Tensor
    ) -> None:
        """Follow the contribution through one more module on its way to the residual stream."""
        if self._contribution is None:
            return
        passages = self.layer.departure.passages
        nature = passages[position][1]
        self._contribution = pass_through(self._contribution, nature, module, inputs[0], output, kwargs)
        if position == len(passages) - 1:
            self._show()

    def _show(self) -> None:
        self._finish(self)
        self._forget()

    def _enter_layer(self, module: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._forget()
        self._has_called = False
        entered = inputs[0] if inputs else kwargs.get("hidden_states")
        self.entered = entered if isinstance(entered, torch.Tensor) else None
        if self.layer.departure.residual == "layer_input":
            self._residual = self.entered

    def _pass_child(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, tuple) and len(output) == 2:
            self._last_child = output
        elif inputs and isinstance(inputs[0], torch.Tensor):
            self._last_child = (inputs[0], output)

    def _enter_mixing(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._residual = inputs[self.layer.departure.residual_child[1]]  # type: ignore[index]

    def _mix_streams(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        _, split = self.layer.departure.streams  # type: ignore[misc]
        self._residual, self._stream_weights = split(inputs[0], output)

    def _enter_block(self, block: nn.Module, inputs: tuple[Any, ...]) -> None:
        """The residual stream is what entered the norm whose output is the block's input, or came out beside it."""
        self.block_input = inputs[0]
        if self.layer.departure.residual == "block_input":
            self._residual = inputs[0]
        elif self._residual is None and self._last_child is not None and self._last_child[1] is inputs[0]:
            self._residual = self._last_child[0]
        self._last_child = None

    def _leave_router(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        is_routing = isinstance(output, tuple) and len(output) >= (2 if self.layer.departure.scales_input else 3)
        if is_routing or module is getattr(self.layer.owner, "router", None):
            self._routed = output

    def _leave_owner(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self._has_called:
            raise UnsupportedModelError(
                f"{type(module).__name__} runs {self.layer.name} by a kernel that shows nothing of the routing; "
                "load the model de-quantised and without custom kernels"
            )
