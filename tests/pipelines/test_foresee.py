"""What cannot fit is refused before the base model's weights are read for their digests."""

from __future__ import annotations

import shutil

import pytest

from moe_compress.collection import estimate

DIGESTS = "data/02_intermediate/digests"


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(estimate, "free_host_bytes", lambda: 1000)


@pytest.mark.parametrize("pipeline", ["prune_medical", "collect", "sweep_medical", "prune_mixed"])
def test_a_first_collection_that_cannot_fit_is_refused_with_no_weight_read(project, no_memory, pipeline):
    result = project.run(f"--pipelines={pipeline}")
    assert result.exit_code == 1
    assert "streamed collection needs about" in result.stderr.strip().splitlines()[-1]
    assert not (project.folder / DIGESTS).exists()


def test_statistics_of_an_earlier_run_are_not_refused_for_memory_they_do_not_need(project, monkeypatch):
    assert project.run("--pipelines=collect_medical").exit_code == 0
    shutil.rmtree(project.folder / DIGESTS)
    monkeypatch.setattr(estimate, "free_host_bytes", lambda: 1000)
    result = project.run("--pipelines=collect_medical")
    assert result.exit_code == 0, result.output
    assert "collection, estimated" not in result.output


def test_an_empty_table_is_refused_as_such(project):
    (project.folder / "data/01_raw/domains/medical/demonstrations.jsonl").unlink()
    (project.folder / "data/01_raw/domains/medical/demonstrations.csv").write_text("question,answer\n")
    result = project.run("--pipelines=collect_medical")
    assert result.exit_code == 1
    assert "collect.shard" not in result.stderr
