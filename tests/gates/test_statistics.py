"""What gates may ask of statistics, worked by hand."""

import numpy as np
import pytest

from moe_compress.gates.statistics import measure_several, measure_statistics
from moe_compress.types import Agreement, ExpertStatistics, MoELayout

LAYOUT = MoELayout(layers=(2, 5), num_experts=(4, 4), top_k=2)
COUNTS = np.array([[5.0, 5.0, 6.0, 4.0], [10.0, 10.0, 0.0, 0.0]])


@pytest.fixture
def statistics():
    return ExpertStatistics("medical", LAYOUT, {"count": COUNTS.copy(), "weight": COUNTS * 0.5}, num_tokens=10)


def test_coverage_and_invariants_by_hand(statistics):
    found = measure_statistics(statistics, ())
    assert found.values == {
        "count_error": 0.0,
        "not_finite": 0.0,
        "never_seen": 2 / 8,
        "never_seen_worst": 2 / 4,
        "tokens": 10.0,
        "tokens_per_expert": 5.0,  # of 0 0 4 5 5 6 10 10
    }
    assert found.places["never_seen_worst"] == "layer 5"


def test_what_breaks_after_the_value_was_built_is_seen(statistics):
    statistics.sums["count"][0, 1] += 3
    statistics.sums["weight"][1, 2] = np.nan
    found = measure_statistics(statistics, ())
    assert (found.values["count_error"], found.places["count_error"]) == (3.0, "layer 2")
    assert (found.values["not_finite"], found.places["not_finite"]) == (1.0, "weight")


def test_halves_and_their_worst_layer(statistics):
    agreement = Agreement((2, 5), (0.5, 0.25), (0.9, 0.7), {10: (1.0, 1.0)}, ((1.0,),), 0.5)
    found = measure_statistics(statistics, (agreement,))
    assert found.values["split_half_jaccard"] == 0.375
    assert found.values["split_half_jaccard_worst"] == 0.25
    assert found.places["split_half_jaccard_worst"] == "layer 5"


def test_of_several_domains_the_worst_is_told(statistics):
    even = np.full((2, 4), 10.0)
    math = ExpertStatistics("math", LAYOUT, {"count": even, "weight": even}, num_tokens=20)
    found = measure_several([math, statistics])
    assert (found.values["never_seen_worst"], found.places["never_seen_worst"]) == (0.5, "domain medical, layer 5")
    assert (found.values["tokens"], found.places["tokens"]) == (10.0, "domain medical")
    math.sums["count"][0, 1] += 3
    assert measure_several([math, statistics]).places["count_error"] == "domain math, layer 2"


@pytest.mark.parametrize("place", [0, 1])
def test_a_domain_without_a_finite_number_is_the_worst_wherever_it_stands(statistics, place):
    even = np.full((2, 4), 10.0)
    several = [ExpertStatistics("math", LAYOUT, {"count": even, "weight": even}, num_tokens=20), statistics]
    several[place].sums["count"][0, 1] = np.nan
    found, broken = measure_several(several), several[place].domain
    for metric in ("count_error", "tokens_per_expert"):
        assert np.isnan(found.values[metric])
        assert found.places[metric].startswith(f"domain {broken}")
