"""A number that is none is found wherever it hides, and named."""

import pytest
import torch

from moe_compress.errors import NotFiniteError
from moe_compress.evaluation import finite
from moe_compress.evaluation.finite import check_weights, first_broken


def test_the_tensor_and_the_expert_are_named(make_model):
    model = make_model()
    check_weights(model, "candidate")
    with torch.no_grad():
        model.model.layers[0].mlp.experts.down_proj[5, 1, 2] = torch.inf
    with pytest.raises(NotFiniteError, match=r"candidate holds .*layers.0.mlp.experts.down_proj at index 5"):
        check_weights(model, "candidate")


def test_a_routers_bias_that_is_no_parameter_is_looked_at_too(make_model):
    model = make_model()
    router = model.model.layers[0].mlp.gate
    router.e_score_correction_bias = torch.nn.Buffer(torch.tensor([0.0, torch.nan]))
    router.num_seen = torch.nn.Buffer(torch.tensor([3, 4]))
    router.mask = torch.nn.Buffer(torch.tensor([0.0, -torch.inf]), persistent=False)
    with pytest.raises(NotFiniteError, match=r"layers.0.mlp.gate.e_score_correction_bias at index 1"):
        check_weights(model, "candidate")
    router.e_score_correction_bias.zero_()
    check_weights(model, "candidate")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_first_place(dtype, monkeypatch):
    monkeypatch.setattr(finite, "_PIECE", 6)
    values = torch.ones(7, 3)
    assert first_broken(values.to(dtype)) is None
    values[4, 1] = values[6, 0] = torch.nan
    assert first_broken(values.to(dtype)) == 4


def test_a_sum_that_overflows_is_not_a_broken_weight():
    assert first_broken(torch.full((4, 4), 3e38)) is None


@pytest.mark.parametrize("tensor", [torch.arange(3), torch.empty(0, 2), torch.tensor(1.0)])
def test_what_cannot_be_broken(tensor):
    assert first_broken(tensor) is None


def test_a_single_number():
    assert first_broken(torch.tensor(torch.nan)) == 0
