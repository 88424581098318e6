"""Budgets from sizes: the most that fits, by hand and by trying one step more."""

from __future__ import annotations

import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods import budget_within, check_within, parse_count, parse_size
from moe_compress.types import Budget, CompressionPlan, ModelSize, MoELayout, pruning_groups

LAYOUT = MoELayout((0, 1, 2), (16,) * 3, 2)
SIZE = ModelSize((10, 10, 10), 100)


def limits(scope="per_layer", **bounds):
    return Budget(fraction_dropped=0.0, scope=scope, **bounds)


def within(max_size, size, layout, scope="per_layer", **bounds):
    return budget_within(max_size, size, layout, limits(scope, **bounds))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24 GB", 24 * 10**9),
        ("24GiB", 24 * 2**30),
        ("1.5 gb", 1_500_000_000),
        ("80 MB", 8 * 10**7),
        ("1 TiB", 2**40),
        (7, 7),
        ("7", 7),
        (12345678901234567, 12345678901234567),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24 gigs", "GB", "-3 GB", "", "13M"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ParameterError, match=f"a size of '{text}' is not understood"):
        parse_size(text)


@pytest.mark.parametrize(("text", "count"), [("13B", 13 * 10**9), ("1.5 m", 1_500_000), (7, 7), ("2T", 2 * 10**12)])
def test_numbers_of_parameters_are_read(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["13 GB", "B", "many"])
def test_numbers_of_parameters_that_are_none_are_refused(text):
    with pytest.raises(ParameterError, match=f"a number of parameters of '{text}' is not understood"):
        parse_count(text)


def kept(budget, layout=LAYOUT):
    if budget.scope == "per_layer":
        return methods.experts_to_keep(budget, layout)
    return methods.total_to_keep(budget, layout)


def test_as_many_as_fit_by_hand():
    # 100 of 419 are the rest; 319 hold 10 experts in each layer (300) and not 11 (330).
    assert kept(within(419, SIZE, LAYOUT)) == (10, 10, 10)
    assert kept(within(430, SIZE, LAYOUT)) == (11, 11, 11)
    # In multiples of 4: 8. Over all layers 31 experts fit.
    assert kept(within(419, SIZE, LAYOUT, multiple_of=4)) == (8, 8, 8)
    assert kept(within(419, SIZE, LAYOUT, "global")) == 31
    assert kept(within(419, SIZE, LAYOUT, "global", multiple_of=4)) == 28
    assert kept(within(10**6, SIZE, LAYOUT)) == (16, 16, 16)
    assert kept(within(10**6, SIZE, LAYOUT, "global")) == 48


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("max_size", range(180, 640, 7))
def test_what_is_kept_fits_and_one_more_would_not(max_size, scope):
    counts = kept(within(max_size, SIZE, LAYOUT, scope))
    total, more = (sum(counts), 3) if scope == "per_layer" else (counts, 1)
    assert 100 + 10 * total <= max_size
    assert total == 48 or 100 + 10 * (total + more) > max_size


def test_layers_may_weigh_differently():
    size = ModelSize((10, 20, 30), 0)
    assert kept(within(359, size, LAYOUT)) == (5, 5, 5)
    # Which layers keep more is not known, so all count as the heaviest.
    assert kept(within(359, size, LAYOUT, "global")) == 11


def test_router_groups_count_as_a_step():
    grouped = MoELayout((0, 1, 2), (16,) * 3, 2, num_groups=4, topk_groups=2)
    assert kept(within(419, SIZE, grouped), grouped) == (8, 8, 8)


def test_bounds_count():
    # 31 fit; at most 9 in each of three layers are 27, and 12 in each are 36.
    assert kept(within(419, SIZE, LAYOUT, "global", at_most=9)) == 27
    with pytest.raises(ParameterError, match="take 360; give at least 460"):
        within(419, SIZE, LAYOUT, "global", at_least=12)
    assert kept(within(419, SIZE, LAYOUT, "importance")) == 31


# Two experts of each layer are the fewest, or what is left when 90 % of 16 go.
@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("max_size", [50, 159])
def test_too_little_is_refused_with_what_would_do(max_size, scope):
    size = ModelSize((10, 10, 10), 100, "parameters")
    message = f"{max_size} parameters leave {max(0, max_size - 100)} for experts .* give at least 160"
    with pytest.raises(ParameterError, match=message):
        within(max_size, size, LAYOUT, scope)
    assert within(160, size, LAYOUT, scope)


def test_a_plan_that_keeps_too_many():
    kept_all = CompressionPlan(LAYOUT, (pruning_groups(range(16)),) * 3, "toy")
    check_within(kept_all, Budget(experts_per_layer=16))
    with pytest.raises(ParameterError, match="'toy' keeps 16 experts and only 15 fit"):
        check_within(kept_all, Budget(experts_per_layer=15))
    with pytest.raises(ParameterError, match="'toy' keeps 48 experts and only 47 fit"):
        check_within(kept_all, within(579, SIZE, LAYOUT, "global"))
