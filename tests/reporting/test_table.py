"""The terminal table."""

import io
from dataclasses import replace

from rich.console import Console

from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.table import print_report


def printed(report: CompressionReport, width: int = 100) -> list[str]:
    """Return the lines as words, so that only the order of cells counts."""
    buffer = io.StringIO()
    print_report(report, Console(file=buffer, width=width))
    return buffer.getvalue().replace("\N{NO-BREAK SPACE}", " ").splitlines()


def words(report: CompressionReport) -> list[str]:
    return [" ".join(line.split()).replace("\N{MINUS SIGN}", "-") for line in printed(report)]


def test_every_table_has_its_rows(report: CompressionReport) -> None:
    lines = words(report)
    for expected in (
        "Passed 5 of 6 gates, with 1 warning medical",
        "Registered as moe-medical version 3 (alias candidate).",
        "experts per layer 64 32",
        "parameters 8.13 M 4.94 M -39.3 %",
        "weights on disk 16.3 MB 9.88 MB -39.3 %",
        "tokens per second 18.4 k 17.9 k -3.0 %",
        "medical 80.0 % 79.0 % -1.0 (-3.5 to +1.5) 98.2 % 6.41 → 6.49",
        "math 80.0 % 61.3 % -18.7 (-23.7 to -13.6) 66.1 % 3.34 → 5.87",
        "size_on_disk 0.6071 at most 0.75 passed critical",
        "throughput 0.97 at least 1 warning warning",
    ):
        assert expected in lines


def test_a_failed_gate_is_named_with_value_and_limit_at_the_top(failed_report: CompressionReport) -> None:
    lines = words(failed_report)
    assert lines[1] == "Failed 1 of 6 gates medical"
    assert lines[2] == "domain_quality_kept: observed 0.8127, limit at least 0.95"
    assert "Nothing was registered." in lines


def test_nothing_is_wider_than_100_columns(report: CompressionReport) -> None:
    outcomes = report.gate_report.outcomes
    long = replace(outcomes[0], name="keeps_the_quality_of_" + "a_very_long_domain_name_" * 5)
    wordy = replace(report, gate_report=replace(report.gate_report, outcomes=(long, *outcomes)))
    lines = printed(wordy, width=240)
    assert max(map(len, lines)) <= 100
    assert any("at least 0.95" in line and "passed" in line for line in lines)


def test_names_are_not_markup(report: CompressionReport) -> None:
    hostile = "[bold red]medical[/]"
    renamed = replace(report, domain=hostile, gate_report=replace(report.gate_report, domain=hostile))
    assert f"Passed 5 of 6 gates, with 1 warning {hostile}" in words(renamed)
