"""The page of method results, its numbers worked by hand."""

from __future__ import annotations

import pytest

from moe_compress.reporting.results_page import Cell, MethodResults, write_results_page
from moe_compress.types import CompressionPlan, MoELayout, pruning_groups


def cell(accuracy: float, perplexity: float = 5.0) -> Cell:
    return Cell(accuracy, accuracy - 0.05, accuracy + 0.05, 200, perplexity)


@pytest.fixture
def results() -> MethodResults:
    layout = MoELayout((0,), (4,), 2)
    kept = {"medical": [0, 1], "math": [1, 2]}
    plans = {
        ("toy", domain, 0.5): CompressionPlan(layout, (pruning_groups(row),), "toy") for domain, row in kept.items()
    }
    cells = {
        ("toy", "medical", 0.5): {"medical": cell(0.65, 6.0), "math": cell(0.25)},
        ("toy", "math", 0.5): {"medical": cell(0.3), "math": cell(0.5)},
    }
    few = {"medical": cell(0.5), "math": cell(0.5)}
    return MethodResults({"medical": cell(0.75), "math": cell(0.5)}, few, cells, plans, "toy")


def test_share_kept_is_of_what_is_above_chance(results: MethodResults) -> None:
    # (0.65 - 0.25) / (0.75 - 0.25)
    assert results.kept(("toy", "medical", 0.5), "medical") == pytest.approx(0.8)
    assert results.kept(("toy", "medical", 0.5), "math") == 0.0


def test_the_page_has_own_and_other_domains(results: MethodResults, tmp_path) -> None:
    files = write_results_page(results, tmp_path / "methods.md")
    lines = (tmp_path / "methods.md").read_text().replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "| medical | 75.0, 70.0 to 80.0 | 5 |" in lines
    # Own domains keep 80 % and 100 %, 90 % on average.
    assert "| `toy` | 80.0 % (65.0, 60.0 to 70.0; 6) | 100.0 % (50.0, 45.0 to 55.0; 5) | 90.0 % |" in lines
    assert "| math | 20.0 % (30.0, 25.0 to 35.0) | 100.0 % (50.0, 45.0 to 55.0) |" in lines
    assert files == [tmp_path / "methods.md", tmp_path / "overlap-50.png"]
