"""Budgets from sizes: the most that fits, by hand and by trying one step more."""

from __future__ import annotations

import pytest

from moe_compress import methods
from moe_compress.errors import ParameterError
from moe_compress.methods import ModelSize, budget_within, parse_size
from moe_compress.types import MoELayout

LAYOUT = MoELayout((0, 1, 2), (16,) * 3, 2)
SIZE = ModelSize((10, 10, 10), 100)


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
    ],
)
def test_sizes_are_read(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["24 gigs", "GB", "-3 GB", "", "13B"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ParameterError, match=f"a size of '{text}' is not understood"):
        parse_size(text)


def kept(budget, layout=LAYOUT):
    if budget.scope == "per_layer":
        return methods.experts_to_keep(budget, layout)
    return methods.total_to_keep(budget, layout)


def test_as_many_as_fit_by_hand():
    # 100 of 419 are the rest; 319 hold 10 experts in each layer (300) and not 11 (330).
    assert kept(budget_within(419, SIZE, LAYOUT)) == (10, 10, 10)
    assert kept(budget_within(430, SIZE, LAYOUT)) == (11, 11, 11)
    # In multiples of 4: 8. Over all layers 31 experts fit.
    assert kept(budget_within(419, SIZE, LAYOUT, multiple_of=4)) == (8, 8, 8)
    assert kept(budget_within(419, SIZE, LAYOUT, "global")) == 31
    assert kept(budget_within(419, SIZE, LAYOUT, "global", multiple_of=4)) == 28
    assert kept(budget_within(10**6, SIZE, LAYOUT)) == (16, 16, 16)
    assert kept(budget_within(10**6, SIZE, LAYOUT, "global")) == 48


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("max_size", range(180, 640, 7))
def test_what_is_kept_fits_and_one_more_would_not(max_size, scope):
    counts = kept(budget_within(max_size, SIZE, LAYOUT, scope))
    total, more = (sum(counts), 3) if scope == "per_layer" else (counts, 1)
    assert 100 + 10 * total <= max_size
    assert total == 48 or 100 + 10 * (total + more) > max_size


def test_layers_may_weigh_differently():
    size = ModelSize((10, 20, 30), 0)
    assert kept(budget_within(359, size, LAYOUT)) == (5, 5, 5)
    # Which layers keep more is not known, so all count as the heaviest.
    assert kept(budget_within(359, size, LAYOUT, "global")) == 11


def test_router_groups_count_as_a_step():
    grouped = MoELayout((0, 1, 2), (16,) * 3, 2, num_groups=4, topk_groups=2)
    assert kept(budget_within(419, SIZE, grouped), grouped) == (8, 8, 8)


@pytest.mark.parametrize("scope", ["per_layer", "global"])
@pytest.mark.parametrize("max_size", [50, 159])
def test_too_little_is_refused(max_size, scope):
    with pytest.raises(ParameterError, match=f"{max_size} parameters leave {max(0, max_size - 100)} for experts"):
        budget_within(max_size, ModelSize((10, 10, 10), 100, "parameters"), LAYOUT, scope)
