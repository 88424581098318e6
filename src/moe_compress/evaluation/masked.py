"""Try a pruning plan on a loaded model: hide dropped experts from the router, which equals removing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from moe_compress.errors import PlanError, UnsupportedModelError
from moe_compress.families.masking import MASKABLE, hide_experts
from moe_compress.types import CompressionPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOP_K_NAMES = ("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "moe_k")


@contextmanager
def mask_experts(model: PreTrainedModel, kept_per_layer: Sequence[Sequence[int]]) -> Iterator[None]:
    """Route only to the kept experts inside the block.

    Args:
        model: a stock transformers model of one of the families that can be masked.
        kept_per_layer: per layer with routed experts, in order, the experts to keep (`CompressionPlan.kept`).

    Raises:
        UnsupportedModelError: if masking is not known to equal removal for the model's family.
        PlanError: if the plan does not fit the model.
    """
    check_maskable(model)
    owners = find_owners(model)
    if len(kept_per_layer) != len(owners):
        raise PlanError(
            f"the plan covers {len(kept_per_layer)} layers, the model has {len(owners)} with experts; "
            "plan for this model"
        )
    config = model.config.get_text_config()
    for position, (owner, kept) in enumerate(zip(owners, kept_per_layer, strict=True)):
        _check_layer(config, owner, kept, position)
    with ExitStack() as stack:
        for owner, kept in zip(owners, kept_per_layer, strict=True):
            stack.enter_context(hide_experts(owner, kept))
        yield


def find_owners(model: PreTrainedModel) -> list[Any]:
    """Return the modules that own routed experts, one per layer that has some, in order."""
    modules = model.get_decoder().modules()
    return [module for module in modules if hasattr(getattr(module, "experts", None), "num_experts")]


def check_plan(plan: CompressionPlan) -> None:
    """Check that hiding experts does what a plan does.

    Raises:
        PlanError: if the plan merges, or its router picks otherwise afterwards.
    """
    if not plan.is_pruning:
        raise PlanError(
            f"the plan of '{plan.method}' merges experts, and what that makes cannot be had by masking a router; "
            "write the checkpoint and evaluate that"
        )
    if plan.router_groups == "flatten" and plan.layout.num_groups > 1:
        raise PlanError(
            f"the plan of '{plan.method}' gives up the router's {plan.layout.num_groups} groups, which a mask "
            "leaves in place; write the checkpoint and evaluate that, or set select.groups to balanced"
        )


def check_maskable(model: PreTrainedModel) -> None:
    """Check that masking is known to equal removal for a model's family.

    Raises:
        UnsupportedModelError: if it is not.
    """
    family = model.config.get_text_config().model_type
    if family not in MASKABLE:
        raise UnsupportedModelError(
            f"experts of '{family}' cannot be masked: it was not tried whether that equals removing them; "
            "write the pruned checkpoint and evaluate that"
        )


def _check_layer(config: Any, owner: Any, kept: Sequence[int], position: int) -> None:
    num_experts = owner.experts.num_experts
    place = f"MoE layer {position} (counted from 0)"
    if len(set(kept)) != len(kept) or not all(0 <= expert < num_experts for expert in kept):
        raise PlanError(
            f"{place} keeps {sorted(kept)[:8]}, some twice or outside 0..{num_experts - 1}; plan for this model"
        )
    named = (value for name in _TOP_K_NAMES if type(value := getattr(config, name, None)) is int)
    top_k = next(named, None) or owner.top_k
    if len(kept) < top_k:
        raise PlanError(
            f"{place} keeps {len(kept)} experts, but the router picks top_k={top_k} per token; "
            f"keep at least {top_k}"
        )
    is_grouped = getattr(config, "topk_method", None) != "greedy"
    size = num_experts // ((getattr(config, "n_group", None) or 1) if is_grouped else 1)
    per_group = [sum(expert // size == group for expert in kept) for group in range(num_experts // size)]
    if len(set(per_group)) > 1:
        raise PlanError(f"{place} keeps {per_group} experts of its router's groups; keep as many of each")
