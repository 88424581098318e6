"""Try a pruning plan on a loaded model: hide dropped experts from the router, which equals removing them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from moe_compress.errors import PlanError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SOFTMAX_FAMILIES = frozenset({"mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Routers that take a softmax of `linear(hidden, weight)`: with a logit of -inf, it is that of the others."""

SIGMOID_FAMILIES = frozenset({"deepseek_v3", "dots1", "glm4_moe"})
"""Routers that pick by sigmoid plus correction bias: a bias of -inf is never picked, no weight changes."""


@contextmanager
def mask_experts(model: PreTrainedModel, kept_per_layer: Sequence[Sequence[int]]) -> Iterator[None]:
    """Route only to the kept experts inside the block.

    Args:
        model: a stock transformers model of one of the families above.
        kept_per_layer: per layer with routed experts, in order, the experts to keep (`CompressionPlan.kept`).

    Raises:
        UnsupportedModelError: if masking is not known to equal removal for the model's family.
        PlanError: if the plan does not fit the model.
    """
    check_maskable(model)
    routers = [module.gate for module in model.modules() if hasattr(module, "gate") and hasattr(module, "experts")]
    if len(kept_per_layer) != len(routers):
        raise PlanError(
            f"the plan covers {len(kept_per_layer)} layers, the model has {len(routers)} with experts; "
            "plan for this model"
        )
    for position, (router, kept) in enumerate(zip(routers, kept_per_layer, strict=True)):
        _check_layer(router, kept, position)
    mask = _mask_softmax if model.config.model_type in SOFTMAX_FAMILIES else _mask_sigmoid
    with ExitStack() as stack:
        for router, kept in zip(routers, kept_per_layer, strict=True):
            stack.enter_context(mask(router, _penalty(router, kept)))
        yield


def check_maskable(model: PreTrainedModel) -> None:
    """Check that masking is known to equal removal for a model's family.

    Raises:
        UnsupportedModelError: if it is not.
    """
    known = SOFTMAX_FAMILIES | SIGMOID_FAMILIES
    if model.config.model_type not in known:
        raise UnsupportedModelError(
            f"experts of '{model.config.model_type}' cannot be masked ({', '.join(sorted(known))} can); "
            "write the pruned checkpoint and evaluate that"
        )


def _check_layer(router: Any, kept: Sequence[int], position: int) -> None:
    place = f"MoE layer {position} (counted from 0)"
    if len(set(kept)) != len(kept) or not all(0 <= expert < router.num_experts for expert in kept):
        raise PlanError(
            f"{place} keeps {sorted(kept)[:8]}, some twice or outside 0..{router.num_experts - 1}; "
            "plan for this model"
        )
    if len(kept) < router.top_k:
        raise PlanError(
            f"{place} keeps {len(kept)} experts, but the router picks top_k={router.top_k} per token; "
            f"keep at least {router.top_k}"
        )
    num_groups = getattr(router, "num_group", 1)
    size = router.num_experts // num_groups
    per_group = [sum(expert // size == group for expert in kept) for group in range(num_groups)]
    if len(set(per_group)) > 1:
        raise PlanError(f"{place} keeps {per_group} experts of its router's groups; keep as many of each")


def _penalty(router: Any, kept: Sequence[int]) -> torch.Tensor:
    """Return 0 for kept and -inf for dropped experts, `[E]`."""
    penalty_E = torch.full((router.num_experts,), -torch.inf, device=router.weight.device)
    penalty_E[list(kept)] = 0
    return penalty_E


@contextmanager
def _mask_sigmoid(router: Any, penalty_E: torch.Tensor) -> Iterator[None]:
    bias_E = router.e_score_correction_bias
    router.e_score_correction_bias = bias_E + penalty_E
    try:
        yield
    finally:
        router.e_score_correction_bias = bias_E


@contextmanager
def _mask_softmax(router: Any, penalty_E: torch.Tensor) -> Iterator[None]:
    unmasked: Callable[..., Any] = router.forward
    was_wrapped = "forward" in vars(router)
    penalty = penalty_E.to(router.weight.dtype)

    def forward(*args: Any, **kwargs: Any) -> Any:
        with _PenalisedLinear(penalty):
            return unmasked(*args, **kwargs)

    router.forward = forward
    try:
        yield
    finally:
        del router.forward
        if was_wrapped:
            router.forward = unmasked


class _PenalisedLinear(TorchFunctionMode):
    """Add a penalty to what `linear` returns, so that a router's own code goes on from masked logits."""

    def __init__(self, penalty_E: torch.Tensor) -> None:
        super().__init__()
        self.penalty_E = penalty_E

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        return result + self.penalty_E if function is linear else result
