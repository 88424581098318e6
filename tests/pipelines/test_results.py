"""The results table from one command, on the toy project."""

from __future__ import annotations


def test_one_command_writes_the_table(project):
    result = project.run(
        "--pipelines=results",
        "--params=results.other_limit=8,results.heldout_limit=4,results.page=docs/results/methods.md",
    )
    assert result.exit_code == 0, result.output
    page = (project.folder / "docs/results/methods.md").read_text()
    assert "## Half of the experts kept" in page and "## A quarter of the experts kept" in page
    # A heading, a rule and ten methods, for each of two budgets.
    assert page.count("| `easy_ep` |") == page.count("| `random` |") == 2
    for figure in ("overlap-50.png", "overlap-25.png"):
        assert f"({figure})" in page
        assert (project.folder / "docs/results" / figure).stat().st_size > 1000
