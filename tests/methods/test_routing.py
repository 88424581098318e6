"""The routing rules against transformers' own routers, whole and with some experts cut out of them."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch

from moe_compress.methods._routing import Routing

HIDDEN, EXPERTS, TOKENS, KEPT = 8, 8, 40, [1, 2, 4, 7]
GROUPS = {"n_group": 2, "topk_group": 1}

FAMILIES = {
    "mixtral": ("Mixtral", "num_local_experts", {}, Routing(2)),
    "qwen3_moe": ("Qwen3Moe", "num_experts", {"norm_topk_prob": True}, Routing(2)),
    "qwen2_moe": ("Qwen2Moe", "num_experts", {"norm_topk_prob": False}, Routing(2, normalise=False)),
    "gpt_oss": ("GptOss", "num_local_experts", {}, Routing(2)),
    "ernie4_5_moe": ("Ernie4_5_Moe", "moe_num_experts", {}, Routing(2)),
    "deepseek_v2": (
        "DeepseekV2",
        "n_routed_experts",
        {
            **GROUPS,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 1.5,
            "num_attention_heads": 1,
        },
        Routing(2, normalise=False, scaling=1.5, num_groups=2, topk_groups=1, group_score="max"),
    ),
    "deepseek_v3": (
        "DeepseekV3",
        "n_routed_experts",
        {**GROUPS, "routed_scaling_factor": 2.5, "norm_topk_prob": True},
        Routing(2, "sigmoid", True, 2.5, num_groups=2, topk_groups=1),
    ),
    "glm4_moe": (
        "Glm4Moe",
        "n_routed_experts",
        {"n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True},
        Routing(2, "sigmoid"),
    ),
}


def make_router(family, kept):
    """Return a family's router with the rows of `kept` from the same random weights."""
    prefix, count_key, options, _ = FAMILIES[family]
    modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    top_k = "moe_k" if family == "ernie4_5_moe" else "num_experts_per_tok"
    config = getattr(configuration, f"{prefix}Config")(
        hidden_size=HIDDEN, **{count_key: len(kept), top_k: 2}, **options
    )
    name = next(name for name in vars(modeling) if name.startswith(prefix) and name.lower().endswith("topkrouter"))
    router = getattr(modeling, name)(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in [*router.parameters(), *router.buffers()]:
        axis = parameter.shape.index(len(kept))
        shape = [EXPERTS if index == axis else size for index, size in enumerate(parameter.shape)]
        drawn = torch.randn(shape, generator=generator) * (1.0 if parameter.ndim == 2 and axis == 0 else 0.2)
        parameter.data.copy_(drawn.index_select(axis, torch.tensor(kept)))
    return router


def bias_of(router):
    """Return the correction bias, wherever the family keeps it."""
    for name, value in [*router.named_parameters(), *router.named_buffers()]:
        if "e_score_correction_bias" in name:
            return value.detach().double().reshape(-1)
    return None


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", [list(range(EXPERTS)), KEPT], ids=["whole", "cut"])
def test_gates_are_those_of_transformers(family, kept):
    whole, cut = make_router(family, list(range(EXPERTS))), make_router(family, kept)
    hidden = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = whole(hidden)[0]
        _, expected_gates, expected_ids = cut(hidden)
    routing = replace(FAMILIES[family][3], bias_E=bias_of(whole))
    there = torch.zeros(TOKENS, EXPERTS, dtype=torch.bool)
    there[:, kept] = True
    ids, gates = routing.gates(routing.scores(logits), there)
    expected = torch.zeros(TOKENS, EXPERTS, dtype=torch.float64)
    expected.scatter_(1, torch.tensor(kept)[expected_ids], expected_gates.double())
    found = torch.zeros_like(expected).scatter_(1, ids, gates)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_the_fewest_experts_a_router_works_with():
    assert Routing(4).fewest == 4
    assert Routing(4, num_groups=8, topk_groups=4).fewest == 16  # two of each group, to rank it
    assert Routing(8, num_groups=4, topk_groups=2).fewest == 16  # four of each, to find eight in two
    assert Routing(3, num_groups=4, topk_groups=3, group_score="max").fewest == 4
