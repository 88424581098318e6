"""Size is told from headers alone, and speed counts the tokens that were read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from moe_compress.errors import CheckpointError
from moe_compress.evaluation.throughput import measure_prefill_speeds, measure_size


def test_size_is_that_of_the_saved_model(model, folder):
    size = measure_size(folder)
    assert size.num_parameters == sum(tensor.numel() for tensor in model.state_dict().values())
    assert size.num_bytes == (folder / "model.safetensors").stat().st_size


def test_only_files_of_the_index_count(tmp_path):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(())}, tmp_path / "one.safetensors", {"format": "pt"})
    save_file({"c": torch.zeros(5, dtype=torch.int8)}, tmp_path / "two.safetensors")
    save_file({"a": torch.zeros(99)}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    files = [tmp_path / "one.safetensors", tmp_path / "two.safetensors"]
    assert measure_size(tmp_path) == (3 * 4 + 1 + 5, sum(file.stat().st_size for file in files))


def test_a_shard_that_is_not_there_is_named(tmp_path):
    index = {"weight_map": {"a": "gone.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks gone\.safetensors"):
        measure_size(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="lacks any safetensors file"):
        measure_size(tmp_path)


def test_a_damaged_header_is_told(tmp_path):
    (tmp_path / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b'{"a":')
    with pytest.raises(CheckpointError, match=r"header of .* is damaged"):
        measure_size(tmp_path)


def test_speed_counts_tokens_over_the_median_time(model, monkeypatch):
    # Each pass reads the clock twice. Two models in turns: a slow first round, then 1, 9 and 2 seconds for the
    # one (median 2) and 4, 5 and 6 for the other (median 5).
    seconds = [100.0, 100.0, 1.0, 4.0, 9.0, 5.0, 2.0, 6.0]
    clock = iter([reading for duration in seconds for reading in (0.0, duration)])
    monkeypatch.setattr("moe_compress.evaluation.throughput.time.perf_counter", lambda: next(clock))
    speeds = measure_prefill_speeds([model, model], batch_size=3, length=8, repeats=3)
    assert speeds == [3 * 8 / 2.0, 3 * 8 / 5.0]
