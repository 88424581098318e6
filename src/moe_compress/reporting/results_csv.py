"""The results table for programs: one line for every plan and domain it was measured on."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator

from moe_compress.reporting.results_table import ResultsTable

COLUMNS = (
    "row",
    "made_for",
    "measured_on",
    "fraction_dropped",
    "merges",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "kept",
    "kept_low",
    "kept_high",
    "perplexity",
    "kl",
    "num_parameters",
)


def as_csv(table: ResultsTable) -> str:
    """Return every cell as a line: shares in 0..1 with 95 % intervals, perplexity and KL (nats) per token.

    The base model comes first, as row `base`. What has no finite value is empty.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for domain, found in table.base.items():
        accuracy, perplexity = f"{found.accuracy:.5f}", f"{found.perplexity:.5g}"
        writer.writerow(
            ["base", "", domain, 0, False, accuracy, "", "", 1, "", "", perplexity, 0, found.num_parameters]
        )
    writer.writerows(_lines(table))
    return text.getvalue()


def _lines(table: ResultsTable) -> Iterator[list[object]]:
    for row, made_for, fraction in dict.fromkeys(key[:3] for key in table.plans):
        for domain in table.domains:
            if table.has(row, made_for, fraction, domain):
                cell = table.cell(row, made_for, fraction, domain)
                shares = [*cell.accuracy, *cell.kept]
                yield [
                    *(row, made_for, domain, fraction, table.merges(row)),
                    *(f"{share:.5f}" if math.isfinite(share) else "" for share in shares),
                    *(f"{cell.perplexity:.5g}", f"{cell.kl:.5g}", round(cell.num_parameters)),
                ]
