"""A plan's text in any format there is: told apart by what is in it, not by the file's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from moe_compress.errors import PlanError
from moe_compress.plans.document import read_document, write_document
from moe_compress.plans.interchange import (
    read_mask,
    read_ordered,
    read_pruned,
    write_mask,
    write_ordered,
    write_pruned,
)
from moe_compress.types import CompressionPlan, MoELayout, RouterGroups

Format = Literal["plan", "easy_ep", "c_prune", "vllm_ascend"]
"""Our own document, EASY-EP's mask, C-Prune's lists of pruned experts, vLLM-Ascend's ordered lists."""

EXPORTS: dict[Format, Callable[[CompressionPlan], str]] = {
    "plan": write_document,
    "easy_ep": write_mask,
    "c_prune": write_pruned,
    "vllm_ascend": write_ordered,
}
"""Format -> what writes a plan in it; raises PlanError where it cannot say the plan."""


def find_format(text: str, where: str) -> Format:
    """Return which format a text is in.

    A single ordered list, of a model with one layer, reads as C-Prune's.

    Raises:
        PlanError: if it is in none.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, list):
        return "easy_ep"
    if isinstance(content, dict) and "layout" in content:
        return "plan"
    if isinstance(content, dict) and all(key.isdecimal() for key in content):
        return "c_prune"
    if content is None and text.lstrip().startswith("{") and "\n{" in text.strip():
        return "vllm_ascend"
    raise PlanError(
        f"{where} is neither a plan of this package, nor EASY-EP's mask, C-Prune's list of pruned experts or "
        "vLLM-Ascend's ordered lists; give one of these"
    )


def read_any(
    text: str,
    where: str,
    layout: MoELayout,
    router_groups: RouterGroups,
    count: Callable[[], tuple[int, ...]],
) -> CompressionPlan:
    """Return the plan of a text in any format.

    Args:
        text: the plan.
        where: what it is called in messages.
        layout: the model's layout, which foreign formats do not tell.
        router_groups: what becomes of a router's groups, which they do not tell either.
        count: returns how many experts of each layer stay of an ordered list.

    Raises:
        PlanError: if it is no plan, or one for another model.
    """
    found = find_format(text, where)
    if found == "plan":
        return _for_layout(read_document(text, where), layout, where)
    if found == "vllm_ascend":
        return read_ordered(text, layout, count(), router_groups)
    read: dict[str, Any] = {"easy_ep": read_mask, "c_prune": read_pruned}
    plan: CompressionPlan = read[found](text, layout, router_groups)
    return plan


def _for_layout(plan: CompressionPlan, layout: MoELayout, where: str) -> CompressionPlan:
    if plan.layout != layout:
        raise PlanError(
            f"{where} is for {plan.layout.described}, and this model has {layout.described}; take "
            "a plan for this model"
        )
    return plan
