"""The page on scaling says of real models what the planner says now, and names commands that there are."""

from __future__ import annotations

import re
import shlex
import subprocess

import pytest
from benchmarks.scaling import PAGE, list_models, write_tables

from moe_compress.export_commands import export


def test_the_page_says_what_the_planner_says():
    needs, times = write_tables(list_models())
    page = PAGE.read_text()
    assert needs in page and times in page


@pytest.mark.parametrize(("name", "size"), [("Qwen3-30B-A3B", 61.1), ("DeepSeek-R1 (FP8)", 688.6)])
def test_the_models_have_their_published_sizes(name, size):
    (model,) = (model for model in list_models() if model.name == name)
    assert sum(spec.num_bytes for spec in model.tensors()) / 1e9 == pytest.approx(size, abs=0.05)


def test_every_export_on_the_page_is_one():
    commands = [
        shlex.split(line) for line in PAGE.read_text().splitlines() if line.startswith("kedro compress export")
    ]
    assert {command[3] for command in commands} == {"airflow", "argo", "claim", "kubernetes"}
    for command in commands:
        assert export.make_context("export", command[3:]).params["shards"] == 8


def test_the_page_s_scripts_parse():
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.S)
    assert len(blocks) >= 3
    for block in blocks:
        subprocess.run(["bash", "-n", "-c", block], check=True)
