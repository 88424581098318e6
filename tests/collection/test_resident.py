"""Collected sums against a loop-by-loop reading of the equations, with padding, on stock models."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import (
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from moe_compress.collection.batches import Batch
from moe_compress.collection.observe import observe
from moe_compress.collection.resident import load_resident
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import UnsupportedModelError
from moe_compress.types import MoELayout

VOCABULARY, EXPERTS, TOP_K, LAYERS = 64, 6, 2, 2
SHARED = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": TOP_K,
    "initializer_range": 0.4,
    "max_position_embeddings": 64,
}


def qwen3():
    config = Qwen3MoeConfig(**SHARED, num_experts=EXPERTS, moe_intermediate_size=12, head_dim=8)
    return Qwen3MoeForCausalLM(config)


def qwen2():
    config = Qwen2MoeConfig(
        **SHARED, num_experts=EXPERTS, moe_intermediate_size=12, shared_expert_intermediate_size=12
    )
    return Qwen2MoeForCausalLM(config)


def olmoe():
    return OlmoeForCausalLM(OlmoeConfig(**SHARED, num_experts=EXPERTS))


def glm4():
    config = Glm4MoeConfig(
        **SHARED,
        n_routed_experts=EXPERTS,
        moe_intermediate_size=12,
        head_dim=8,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=0,
        routed_scaling_factor=1.5,
    )
    return Glm4MoeForCausalLM(config)


@pytest.fixture(params=[qwen3, qwen2, olmoe, glm4], ids=lambda build: build.__name__)
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    mask[2, 8:] = 0
    return {"input_ids": torch.randint(0, VOCABULARY, (3, 9)), "attention_mask": mask}


def layout():
    return MoELayout(tuple(range(LAYERS)), (EXPERTS,) * LAYERS, TOP_K)


def collect(model, batch):
    sums = RoutingSums(layout(), 3)
    with torch.inference_mode(), observe(model, sums.add) as set_batch:
        set_batch(Batch(batch["input_ids"], batch["attention_mask"], torch.arange(3)))
        logits = model(**batch).logits
    return logits, sums


def record_layers(model, batch):
    """Return per layer the residual stream, the router's triple, and the experts' own input, by plain hooks."""
    seen = [{} for _ in range(LAYERS)]
    handles = []
    for layer, store in zip(model.model.layers, seen, strict=True):
        block = layer.mlp
        handles += [
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, inputs, store=store: store.update(residual=inputs[0].flatten(0, 1))
            ),
            block.gate.register_forward_hook(lambda _, i, output, store=store: store.update(router=output)),
            block.experts.register_forward_pre_hook(lambda _, inputs, store=store: store.update(hidden=inputs[0])),
        ]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def one_output(experts, expert, hidden_D):
    """Return one expert's output for one token, from its weights."""
    gate_up = experts.gate_up_proj[expert] @ hidden_D
    gate, up = gate_up.chunk(2)
    return experts.down_proj[expert] @ (experts.act_fn(gate) * up)


def norm(vector):
    return math.sqrt(sum(float(x) ** 2 for x in vector))


def cosine(a, b):
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / (norm(a) * norm(b))


@torch.no_grad()
def collect_slowly(model, batch):
    """The score table's sums, one token and one expert at a time."""
    names = ("count", "gate", "norm", "gate_norm", "gate_norm_change", "gate_change", "router_probability")
    sums = {name: [[0.0] * EXPERTS for _ in range(LAYERS)] for name in names}
    mask = batch["attention_mask"].flatten()
    for row, store in enumerate(record_layers(model, batch)):
        logits, weights, ids = store["router"]
        experts = model.model.layers[row].mlp.experts
        for token in range(len(mask)):
            if not mask[token]:
                continue
            hidden = store["hidden"].reshape(-1, 16)[token]
            outputs = [one_output(experts, int(i), hidden) for i in ids[token]]
            routed = sum(float(w) * e.double() for w, e in zip(weights[token], outputs, strict=True))
            residual = store["residual"][token].double()
            change = max(0.0, 1.0 - cosine(residual, residual + routed))
            exponentials = [math.exp(float(x)) for x in logits.reshape(-1, EXPERTS)[token]]
            for expert in range(EXPERTS):
                sums["router_probability"][row][expert] += exponentials[expert] / sum(exponentials)
            for expert, g, e in zip(ids[token].tolist(), weights[token].tolist(), outputs, strict=True):
                n = norm(e)
                for name, value in (
                    ("count", 1.0),
                    ("gate", g),
                    ("norm", n),
                    ("gate_norm", g * n),
                    ("gate_norm_change", g * n * change),
                    ("gate_change", g * change),
                ):
                    sums[name][row][expert] += value
    return sums


def test_sums_are_the_equations_read_slowly(model, batch):
    _, sums = collect(model, batch)
    fast, slow = sums.as_arrays(), collect_slowly(model, batch)
    assert set(fast) == set(slow)
    for name, expected in slow.items():
        torch.testing.assert_close(
            torch.tensor(fast[name]), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-9
        )


def test_counts_add_up_and_padding_does_not_count(model, batch):
    _, sums = collect(model, batch)
    tokens = int(batch["attention_mask"].sum())
    assert tokens == 9 + 5 + 8
    assert sums.num_tokens == [tokens] * LAYERS
    assert (sums.as_arrays()["count"].sum(axis=1) == tokens * TOP_K).all()


def test_observing_changes_no_bit_and_leaves_no_trace(model, batch):
    stock = model.config._experts_implementation
    with torch.inference_mode():
        before = model(**batch).logits
    observed, _ = collect(model, batch)
    with torch.inference_mode():
        after = model(**batch).logits
    assert torch.equal(before, observed) and torch.equal(before, after)
    assert model.config._experts_implementation == stock
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_padding_content_does_not_matter(model, batch):
    _, sums = collect(model, batch)
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][1, 5:] = 3
    _, again = collect(model, other)
    for name, values in sums.as_arrays().items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(again.as_arrays()[name]), rtol=1e-6, atol=1e-9
        )


def test_a_dense_model_is_refused():
    from transformers import Qwen3Config, Qwen3ForCausalLM

    dense = {k: v for k, v in SHARED.items() if k != "num_experts_per_tok"}
    model = Qwen3ForCausalLM(Qwen3Config(**dense, head_dim=8))
    with pytest.raises(UnsupportedModelError, match="no layer with routed experts"), observe(model, print):
        pass


def test_weights_lie_where_streaming_would_put_them(tmp_path):
    qwen3().save_pretrained(tmp_path)
    stock = Qwen3MoeForCausalLM.from_pretrained(tmp_path)
    assert any(weight.data_ptr() % 64 for weight in stock.parameters()), "the file has become aligned"
    weights = dict(load_resident(tmp_path, torch.device("cpu"), torch.float32).named_parameters())
    for name, expected in stock.named_parameters():
        assert torch.equal(weights[name], expected)
        assert weights[name].data_ptr() % 64 == 0 and not weights[name].requires_grad
