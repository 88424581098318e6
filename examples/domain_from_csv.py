"""Make a domain's two files from one table of questions and answers: rows to learn from, questions to measure with.

    python examples/domain_from_csv.py bookkeeping rows.csv

`rows.csv` has the columns `question` and `answer`; the first line of an answer is the answer itself, the rest its
working. Every third row is kept back and becomes a question with four choices, the wrong ones from other rows. So
few questions show a gross loss and no more: write a benchmark of your own where the verdict matters.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COLUMNS = ("question", "answer")
NUM_CHOICES = 4
EVERY = 3

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """Return the table's rows.

    Raises:
        ValueError: if a column is missing, a row is broken, or too few answers differ to make choices of.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        found = reader.fieldnames or []
        missing = [column for column in COLUMNS if column not in found]
        if missing:
            raise ValueError(
                f"{path} has the columns {list(found)}, but no '{missing[0]}'; rename one in its first line"
            )
        rows = []
        for row in reader:
            check_row(row, f"{path}, line {reader.line_num}")
            rows.append(row)
    if len({first_line(row) for row in rows}) < NUM_CHOICES:
        raise ValueError(f"{path} has fewer than {NUM_CHOICES} different answers to make choices of; add rows")
    return rows


def check_row(row: Row, place: str) -> None:
    """Check that a row has a question and an answer, and no cell beyond the columns.

    Raises:
        ValueError: if it has not; a row of several lines is named by its last.
    """
    for column in COLUMNS:
        if not (row[column] or "").strip():
            raise ValueError(f"{place}: the {column} is empty; fill it in, or remove the row")
    if None in row:  # where csv puts the rest of a row
        raise ValueError(f"{place}: more cells than columns; put texts with commas in quotes")


def first_line(row: Row) -> str:
    """Return the answer without its working."""
    return str(row["answer"]).strip().partition("\n")[0].strip()


def split(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """Return the demonstrations, and the benchmark's questions from every third row; the same on every call."""
    rng = random.Random(0)
    learned = [{key: row[key] for key in COLUMNS} for i, row in enumerate(rows) if (i + 1) % EVERY]
    answers = sorted({first_line(row) for row in rows})
    asked = []
    for number, row in enumerate(rows[EVERY - 1 :: EVERY], start=1):
        right = first_line(row)
        choices = [right, *rng.sample([answer for answer in answers if answer != right], NUM_CHOICES - 1)]
        rng.shuffle(choices)
        asked.append(
            {"id": f"q{number}", "question": row["question"], "choices": choices, "answer": choices.index(right)}
        )
    return learned, asked


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def check_absent(paths: Iterable[Path]) -> None:
    """Check that nothing would be replaced.

    Raises:
        FileExistsError: if something would be.
    """
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} is there already; give another name, or --overwrite to replace it")


def main() -> None:
    """Write the files, and say what comes next."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else None,
        epilog="Exit codes: 0 written, 1 the table cannot be used or files are there, 2 wrong usage.",
    )
    parser.add_argument("name", help="the domain, as in prune_<name>")
    parser.add_argument("table", type=Path, help="CSV with the columns question and answer")
    parser.add_argument("--domains", type=Path, default=Path("data/01_raw/domains"), help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace the files of a domain that has some")
    given = parser.parse_args()
    folder = given.domains / given.name
    files = folder / "demonstrations.jsonl", folder / "benchmark.jsonl"
    try:
        learned, asked = split(read_rows(given.table))
        check_absent(() if given.overwrite else files)
    except (OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(files, (learned, asked), strict=True):
        write_rows(file, rows)
    print(f"{folder}: {len(learned)} demonstrations, {len(asked)} questions")
    print("Now write under domains: in conf/base/parameters_domains.yml")
    print(f"  {given.name}: {{name: {given.name}, registered_model: moe-{given.name}}}")
    print(f"and run: kedro run --pipelines=prune_{given.name}")


if __name__ == "__main__":
    main()
