"""What a plan's lineage tells of how it was asked for."""

from moe_compress.pipelines.parameters import SelectParameters


def test_lineage_tells_the_parameters_that_were_set() -> None:
    asked = SelectParameters.model_validate(
        {
            "method": "c_prune",
            "parameters": {"follow": "rates", "layer_rate": 0.2},
            "budget": {"experts_per_layer": 8},
        }
    )
    assert asked.as_provenance() == {
        "method": "c_prune",
        "method_parameters": "follow=rates, layer_rate=0.2",
        "budget": "experts_per_layer=8",
        "seed": "42",
    }


def test_lineage_tells_that_parameters_are_left_as_they_are() -> None:
    assert SelectParameters().as_provenance()["method_parameters"] == "defaults"
