"""Hide experts from a layer's own router, which equals removing them in the families that were tried.

A hidden expert's logit becomes minus infinity, and so does what a router adds to its score for the selection
alone. A softmax is then that of the others, a sigmoid 0, and neither is ever picked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

_NAMES = """
afmoe aria_text axk1 axk2 bailing_hybrid beam cohere2_moe dbrx deepseek_ocr2_text deepseek_v2 deepseek_v3
deepseek_v32 dots1 dots3_note_text ernie4_5_moe exaone_moe flex_olmo flint gemma4_text glm4_moe
glm4_moe_lite glm4v_moe_text glm5_next_text glm_moe_dsa gpt_oss granitemoe granitemoe_swa granitemoehybrid
granitemoeshared hunyuan_v1_moe hy_v3 hy_v4 inkling2_text jamba kimi_linear kolibri1 laguna lfm2_moe
llama4_text mellum mimo_v2_flash minimax minimax_m2 minimax_m3_vl_text mistral4 mistral_large4_text mixtral
muse_spark_text nemotron_h olmoe phimoe qwen2_moe qwen3_5_moe_text qwen3_moe qwen3_next qwen3_omni_moe_text
qwen3_vl_moe_text qwen4_exp_text solar_open step3p5 unlimited_ocr_text
"""
MASKABLE = frozenset(_NAMES.split())
"""Families (of the text model) that were tried against transformers' own model with fewer experts.

Not among them: families whose router also picks what is no expert (longcat_flash, zaya, inkling_text), goes by a
table (deepseek_v4), or is one of two (jetmoe, ernie4_5_vl_moe).
"""


@contextmanager
def hide_experts(owner: Any, kept: Sequence[int]) -> Iterator[None]:
    """Have a layer route to the kept experts alone inside the block; its outputs are then those without the others.

    Args:
        owner: the module that holds the router and the experts.
        kept: the experts to keep, as many in each of the router's groups, enough for it to pick from.
    """
    router = router_of(owner)
    penalty_E = _penalty(router, owner.experts.num_experts, kept)
    with ExitStack() as stack:
        _mask_logits(stack, router, penalty_E)
        _mask_biases(stack, owner, router, penalty_E)
        yield


def router_of(owner: Any) -> Any:
    """Return the router of a module that holds one beside its experts."""
    return owner.gate if hasattr(owner, "gate") else owner.router


def biases_of(owner: Any) -> tuple[torch.Tensor, ...]:
    """Return every bias with a value per expert that a layer's router or its block has, `[E]` each."""
    num_experts = owner.experts.num_experts
    return tuple(bias.detach().reshape(-1) for _, _, bias in _biases(owner, router_of(owner), num_experts))


def _biases(owner: Any, router: Any, num_experts: int) -> Iterator[tuple[dict[str, Any], str, torch.Tensor]]:
    """Yield where each bias lies, its name there, and the bias."""
    places = {id(module): module for module in (owner, *router.modules())}
    for module in places.values():
        for tensors in (module._parameters, module._buffers):
            for name, bias in list(tensors.items()):
                if bias is not None and "bias" in name and bias.numel() == num_experts:
                    yield tensors, name, bias


def _penalty(router: Any, num_experts: int, kept: Sequence[int]) -> torch.Tensor:
    """Return 0 for kept and -inf for dropped experts, `[E]`."""
    penalty_E = torch.full((num_experts,), -torch.inf, device=next(router.parameters()).device)
    penalty_E[list(kept)] = 0
    return penalty_E


def _mask_logits(stack: ExitStack, router: Any, penalty_E: torch.Tensor) -> None:
    """Add the penalty to what the router's own code takes for logits."""
    unmasked: Callable[..., Any] = router.forward
    previous = vars(router).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _PenalisedLinear(penalty_E):
            return unmasked(*args, **kwargs)

    router.forward = forward
    if previous is None:
        stack.callback(delattr, router, "forward")
    else:
        stack.callback(setattr, router, "forward", previous)


def _mask_biases(stack: ExitStack, owner: Any, router: Any, penalty_E: torch.Tensor) -> None:
    """Add the penalty to every bias per expert of the router or its block, until the stack closes."""
    for tensors, name, bias in _biases(owner, router, len(penalty_E)):
        stack.callback(tensors.__setitem__, name, bias)
        masked = bias.detach() + penalty_E.to(bias.dtype)
        is_parameter = isinstance(bias, torch.nn.Parameter)
        tensors[name] = torch.nn.Parameter(masked, requires_grad=False) if is_parameter else masked


class _PenalisedLinear(TorchFunctionMode):
    """Add a penalty to what `linear` returns, so that a router's own code goes on from masked logits."""

    def __init__(self, penalty_E: torch.Tensor) -> None:
        super().__init__()
        self.penalty_E = penalty_E

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function is linear and result.shape[-1] == len(self.penalty_E):
            return result + self.penalty_E.to(result.dtype)
        return result
