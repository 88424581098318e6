"""A candidate beside its base: what its plan says, and what changed rows and broken numbers show."""

import pytest
import torch

from moe_compress.checkpoint.index import read_index
from moe_compress.evaluation.probing import find_changed_rows, probe, router_rows
from moe_compress.families.derive import derive_tensor_map
from moe_compress.types import CompressionPlan, ExpertGroup, pruning_groups

TEXTS = {"medical": ["Which gland makes insulin? pancreas", "Name a gas."], "code": ["What does len([]) give?"]}


@pytest.fixture
def plan(folder):
    index = read_index(folder)
    layout = derive_tensor_map(index.config, index.shapes).layout
    return CompressionPlan(layout, tuple(pruning_groups((0, 2, 3, 6)) for _ in layout.layers), "any")


def test_keeping_everything_changes_nothing(folder, plan):
    whole = CompressionPlan(plan.layout, tuple(pruning_groups(range(8)) for _ in plan.layout.layers), "any")
    found = probe(folder, folder, whole, TEXTS, ["medical"])
    assert found.kl == {"medical": pytest.approx(0, abs=1e-5), "code": pytest.approx(0, abs=1e-5)}
    assert found.agreement == {"medical": 1.0, "code": 1.0}
    assert found.changed_rows == () and found.fault == found.left_out == ""
    assert [layer.layer for layer in found.layers] == list(plan.layout.layers)
    assert all(layer.drift == 0 and layer.variation == layer.base_variation for layer in found.layers)


def test_rows_of_the_kept_experts_are_the_bases(folder, plan, make_model, tmp_path, tokenizer):
    base, small = make_model(), make_model(num_experts=4)
    assert len(find_changed_rows(router_rows(base), router_rows(small), plan)) == 4 * len(plan.layout.layers)
    with torch.no_grad():
        for old, new in zip(base.model.layers, small.model.layers, strict=True):
            if hasattr(old.mlp, "gate") and hasattr(old.mlp, "experts"):
                new.mlp.gate.weight.copy_(old.mlp.gate.weight[[0, 2, 3, 6]])
    assert find_changed_rows(router_rows(base), router_rows(small), plan) == ()
    with torch.no_grad():
        small.model.layers[2].mlp.gate.weight[3] = small.model.layers[2].mlp.gate.weight[3].flip(0)
    assert find_changed_rows(router_rows(base), router_rows(small), plan) == (
        "layer 2 expert 3, which was expert 6",
    )
    merged = (*plan.groups[:-1], (*pruning_groups((0, 2, 3)), ExpertGroup((6, 7), (0.5, 0.5))))
    merging = CompressionPlan(plan.layout, merged, "any")
    assert find_changed_rows(router_rows(base), router_rows(small), merging) == ()
    assert find_changed_rows([], [], plan) is None


def test_a_candidate_that_predicts_nan_is_a_fault_with_its_text(folder, plan, make_model, tmp_path, tokenizer):
    broken = make_model()
    with torch.no_grad():
        broken.lm_head.weight[5] = torch.nan
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    found = probe(folder, tmp_path / "broken", plan, TEXTS, ["medical"])
    assert "candidate predicts NaN or infinity on text" in found.fault and found.kl == {}


def test_no_texts_to_observe(folder, plan):
    found = probe(folder, folder, plan, {"code": TEXTS["code"]}, ["medical"])
    assert found.layers == () and "no held-out texts" in found.left_out
