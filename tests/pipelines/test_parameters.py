"""What a plan's lineage tells of how it was asked for."""

from moe_compress.pipelines.parameters import SelectParameters


def test_lineage_tells_the_parameters_that_were_set() -> None:
    asked = SelectParameters.model_validate(
        {
            "method": "c_prune",
            "parameters": {"follow": "rates", "layer_rate": 0.2},
            "budget": {"experts_per_layer": 8, "scope": "global"},
        }
    )
    # C-Prune's rates decide how many go, and of the budget only what goes with them counts.
    assert asked.as_provenance() == {
        "method": "c_prune",
        "method_parameters": "follow=rates, layer_rate=0.2",
        "budget": "as the rates say, scope=global",
        "seed": "42",
    }
    with_budget = asked.model_copy(update={"parameters": {"follow": "budget"}})
    assert with_budget.as_provenance()["budget"] == "experts_per_layer=8, scope=global"


def test_lineage_tells_a_size_that_the_rates_have_to_keep_to() -> None:
    asked = SelectParameters.model_validate(
        {"method": "c_prune", "parameters": {"follow": "rates"}, "budget": {"max_bytes": "24 GB"}}
    )
    assert asked.as_provenance()["budget"] == "as the rates say, max_bytes=24 GB"


def test_lineage_tells_that_parameters_are_left_as_they_are() -> None:
    assert SelectParameters().as_provenance()["method_parameters"] == "defaults"
