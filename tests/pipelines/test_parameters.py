"""What a plan's lineage tells of how it was asked for, and whether what is shipped can be met."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from moe_compress.pipelines.parameters import DomainParameters, SelectParameters

ROOT = Path(__file__).parents[2]


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


def shipped(block: str) -> Any:
    return yaml.safe_load((ROOT / f"conf/base/parameters_{block}.yml").read_text())[block]


@pytest.mark.parametrize("name", ["medical", "code", "math", "finance", "general", "mixed"])
def test_what_is_shipped_keeps_and_saves_enough_for_its_own_gates(name: str) -> None:
    own = DomainParameters.model_validate(shipped("domains")[name])
    chosen = own.selection(SelectParameters.model_validate(shipped("select")))
    gates = {gate["name"]: gate for gate in own.gate_entries(shipped("gates"))}
    with (ROOT / "docs/results/methods.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    made = [
        row
        for row in rows
        if (row["row"], row["made_for"]) == (chosen.method, name)
        and float(row["fraction_dropped"]) == chosen.budget.fraction_dropped
    ]
    kept = {row["measured_on"]: float(row["kept"]) for row in made}
    assert min(kept[domain] for domain in own.targets) >= gates["domain_accuracy_kept"]["at_least"]
    (base,) = {int(row["num_parameters"]) for row in rows if row["row"] == "base"}
    # All weights have one dtype, so bytes shrink as parameters do.
    assert int(made[0]["num_parameters"]) / base <= gates["size_reduced"]["at_most"]
