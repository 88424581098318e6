"""A request that cannot succeed is refused from names alone, with the sentence its late check has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.families.quantised_checkpoints import FP8, encode_fp8, make_model, save, unfuse, write_config
from tests.families.test_mtp import AFTER, glm  # noqa: F401

from moe_compress import methods
from moe_compress.checkpoint.index import read_index
from moe_compress.errors import ParameterError, PlanError, PluginError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.pipelines.data import check_request, refuse_unwritable
from moe_compress.pipelines.parameters import DomainParameters, RewriteParameters, SelectParameters
from moe_compress.tuning.settings import TuneSettings

HALF = {"fraction_dropped": 0.5}


@pytest.fixture(scope="module")
def fp8(tmp_path_factory):
    """A checkpoint whose projections are codes of eight bits."""
    model = make_model("qwen3_moe")
    tensors = encode_fp8(unfuse(model.state_dict()))
    return save(tmp_path_factory.mktemp("fp8") / "model", write_config(model, quantization_config=FP8), tensors)


def ask(folder, budget=None, rewrite=None, steps=0, **select):
    return check_request(
        SimpleNamespace(path=folder),
        SelectParameters(budget=HALF if budget is None else budget, **select),
        DomainParameters(name="any", registered_model="any"),
        RewriteParameters(**(rewrite or {})),
        TuneSettings(steps=steps),
    )


MERGING = [
    ("hc_smoe", {}),
    ("group_and_merge", {}),
    ("m_smoe", {"merge_weights": "affinity"}),
    ("c_prune", {}),
    ("c_prune", {"grouping": "fixed", "hierarchical_clusters": 6, "layer_rate": 0, "merge_weights": "frequency"}),
]
PRUNING = [
    ("hc_smoe", {"merge_weights": "best"}),
    ("m_smoe", {"merge_weights": "affinity", "gamma": "inf"}),
    ("c_prune", {"layer_rate": 0}),
    ("c_prune", {"grouping": "fixed"}),  # twelve clusters of eight experts
    ("c_prune", {"gamma": "inf"}),
    ("reconstruct", {}),
    ("easy_ep", {}),
]


@pytest.mark.parametrize(("method", "parameters"), MERGING)
def test_merging_what_stays_quantised(fp8, method, parameters):
    with pytest.raises(PlanError, match=r"theirs are quantised .*set rewrite\.weights to bfloat16"):
        ask(fp8, method=method, parameters=parameters)
    ask(fp8, method=method, parameters=parameters, rewrite={"weights": "bfloat16"})
    ask(fp8, {"fraction_dropped": 0}, method=method, parameters=parameters)


@pytest.mark.parametrize(("method", "parameters"), PRUNING)
def test_pruning_what_stays_quantised_is_fine(fp8, method, parameters):
    ask(fp8, method=method, parameters=parameters)


def test_tuning_what_stays_quantised(fp8):
    with pytest.raises(UnsupportedModelError, match=r"are quantised \(fp8\).*set rewrite\.weights to bfloat16"):
        ask(fp8, steps=1)
    ask(fp8, steps=1, rewrite={"weights": "bfloat16"})


def test_layers_of_their_own_size_before_one_for_multi_token_prediction(glm):  # noqa: F811
    uneven, layout = HALF | {"scope": "global"}, {"layout": "per_layer"}
    with pytest.raises(PlanError, match=r"cannot be told their own number .*set rewrite\.mtp to drop"):
        ask(glm, uneven, layout)
    ask(glm, uneven, layout | {"mtp": "drop"})
    ask(glm, HALF, layout)
    ask(glm, uneven | {"fraction_dropped": 0}, layout)


def test_a_layer_for_multi_token_prediction_unlike_the_last(glm):  # noqa: F811
    index = read_index(glm)
    shapes = {name: s for name, s in index.shapes.items() if not name.startswith(f"{AFTER}mlp.experts.7.")}
    tensor_map = derive_tensor_map(index.config, shapes)

    def refuse(fraction, **rewrite):
        chosen = SelectParameters(budget={"fraction_dropped": fraction})
        refuse_unwritable(chosen, chosen.budget.as_budget(), RewriteParameters(**rewrite), tensor_map)

    with pytest.raises(PlanError, match=r"cannot be pruned like the last layer .*set rewrite\.mtp to drop"):
        refuse(0.5)
    refuse(0.5, mtp="drop")
    refuse(0)


@pytest.mark.parametrize("method", ["hc_smoe", "c_prune", "c_prune_released", "reconstruct"])
def test_a_total_shared_by_scores_that_a_method_does_not_give(glm, method):  # noqa: F811
    with pytest.raises(ParameterError, match=rf"{method} plans by itself and has no layer scores"):
        ask(glm, HALF | {"scope": "importance"}, {"layout": "per_layer"}, method=method)


@pytest.mark.parametrize("method", ["hc_smoe", "m_smoe", "group_and_merge", "c_prune"])
def test_scores_of_a_method_that_gives_none(method):
    with pytest.raises(ParameterError, match="parameter 'score' is 'hc_smoe', which plans by itself"):
        methods.check_parameters(method, {"score": "hc_smoe"})
    with pytest.raises(PluginError, match="no 'easyep' in methods/"):
        methods.check_parameters(method, {"score": "easyep"})
