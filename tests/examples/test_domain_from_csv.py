"""A domain's files from one table: nothing is both learned and asked; a table that cannot be used is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "domain_from_csv.py"


def run(folder, header, rows, *options):
    with (folder / "rows.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    command = [sys.executable, str(SCRIPT), "legal", "rows.csv", "--domains", "domains", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_third_row_is_asked_and_not_learned(tmp_path):
    rows = [[f"Which is {n}?", f"é{n}\nbecause it is {n}"] for n in range(30)]
    done = run(tmp_path, ["\ufeffquestion", "answer"], rows)  # spreadsheets begin with a byte order mark
    assert done.returncode == 0, done.stderr
    learned, asked = (
        read(tmp_path / "domains/legal" / name) for name in ("demonstrations.jsonl", "benchmark.jsonl")
    )
    assert [row["question"] for row in learned] == [f"Which is {n}?" for n in range(30) if n % 3 != 2]
    assert [row["question"] for row in asked] == [f"Which is {n}?" for n in range(2, 30, 3)]
    for row, n in zip(asked, range(2, 30, 3), strict=True):
        assert row["choices"][row["answer"]] == f"é{n}" and len(set(row["choices"])) == 4
    assert learned[0]["answer"] == "é0\nbecause it is 0"
    assert "legal: {name: legal, registered_model: moe-legal}" in done.stdout


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        (["prompt", "answer"], [["a?", "b"]], "has the columns ['prompt', 'answer'], but no 'question'"),
        (["question", "answer"], [["a?", "1"], ["b?", "2"], ["c?", "1"]], "fewer than 4 different answers"),
        (["question", "answer"], [["a?", "1"], ["b?", ""]], "rows.csv, line 3: the answer is empty; fill it in"),
        (["question", "answer"], [["a?", "1\nas 1"], ["b?", " \n"]], "rows.csv, line 5: the answer is empty"),
        (["question", "answer"], [["a?", "1"], ["b?"]], "rows.csv, line 3: the answer is empty"),
        (["question", "answer"], [[" ", "1"]], "rows.csv, line 2: the question is empty"),
        (["question", "answer"], [["a?", "1", "2"]], "rows.csv, line 2: more cells than columns"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, header, rows, message):
    done = run(tmp_path, header, rows)
    assert done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "domains").exists()


@pytest.mark.parametrize("name", ["demonstrations.jsonl", "benchmark.jsonl"])
def test_files_that_are_there_stay_unless_asked(tmp_path, name):
    header, rows = ["question", "answer"], [[f"Which is {n}?", str(n)] for n in range(12)]
    there = tmp_path / "domains/legal" / name
    there.parent.mkdir(parents=True)
    there.write_text("somebody's work")
    refused = run(tmp_path, header, rows)
    assert refused.returncode == 1 and refused.stderr.count("\n") == 1
    assert f"{Path('domains/legal') / name} is there already; give another name, or --overwrite" in refused.stderr
    assert [file.name for file in there.parent.iterdir()] == [name] and there.read_text() == "somebody's work"
    assert run(tmp_path, header, rows, "--overwrite").returncode == 0
    assert len(read(there)) == (8 if name == "demonstrations.jsonl" else 4)
