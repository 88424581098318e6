"""Size is told from headers alone, and speed counts the tokens that were read."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

from moe_compress.errors import CheckpointError, EvaluationError
from moe_compress.evaluation.footprint import measure_throughput
from moe_compress.evaluation.throughput import measure_size, time_decode, time_prefill
from moe_compress.types import as_json, throughput_from_json


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


def fake_clock(monkeypatch, seconds):
    """Each pass that is timed reads the clock twice, the pass before them not at all."""
    clock = iter([reading for duration in seconds for reading in (0.0, duration)])
    monkeypatch.setattr("moe_compress.evaluation.throughput.time.perf_counter", lambda: next(clock))


def test_prefill_counts_tokens_over_the_median_time(model, monkeypatch):
    fake_clock(monkeypatch, [1.0, 9.0, 2.0])  # median 2
    assert time_prefill(model, 3, length=8, repeats=3) == 3 * 8 / 2.0


def test_decode_counts_what_comes_after_the_first_token(model, monkeypatch):
    # Five tokens take 7, 3 and 5 seconds (median 5), the first alone 1, 1 and 2 (median 1): 4 steps in 4 seconds.
    fake_clock(monkeypatch, [7.0, 3.0, 5.0, 1.0, 1.0, 2.0])
    assert time_decode(model, 2, length=4, steps=4, repeats=3) == 2 * 4 / 4.0


def test_more_time_for_less_is_no_speed(model, monkeypatch):
    fake_clock(monkeypatch, [1.0, 2.0])
    assert math.isnan(time_decode(model, 1, length=4, steps=2, repeats=1))


def test_a_model_alone_in_a_process(folder):
    found = measure_throughput(folder, (1, 3), "cpu")
    assert list(found.prefill) == list(found.decode) == [1, 3]
    assert min(*found.prefill.values(), found.load_seconds) > 0
    # At least the weights are resident once they are loaded and used.
    assert found.memory == "process" and found.peak_bytes > measure_size(folder).num_bytes
    assert throughput_from_json(json.loads(json.dumps(as_json(found)))) == found


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(EvaluationError, match=r"timing .* in a process of its own failed \(.*config\.json"):
        measure_throughput(tmp_path, (1,))
