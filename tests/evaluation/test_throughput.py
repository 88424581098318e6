"""Size is told from headers alone, and speed counts the tokens that were read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from moe_compress.errors import CheckpointError, EvaluationError
from moe_compress.evaluation.footprint import measure_throughput
from moe_compress.evaluation.throughput import measure_size, random_ids, read, summarise, time_in_turns, write
from moe_compress.types import Speed, Throughput, as_json, noise_of, throughput_from_json


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


def test_the_fastest_pass_counts_and_the_median_tells_of_the_machine():
    # 24 tokens in 2 seconds; the median pass takes 3, half as long again. One that was held up says nothing.
    assert summarise(24, [90.0, 3.0, 2.0, 4.0, 2.5]) == Speed(12.0, 0.5)


def test_a_busy_stretch_does_not_make_one_of_two_equal_models_slow():
    # Each model's passes take 1 second, or 2 while something else runs: most of the time beside the second model.
    before, after = summarise(8, [1.0, 1.0, 2.0, 1.0, 1.0]), summarise(8, [2.0, 2.0, 2.0, 1.0, 2.0])
    assert before.tokens_per_second == after.tokens_per_second
    assert after.spread == 1.0


@pytest.mark.parametrize(("yardstick", "noise"), [(100.0, 0.5), (50.0, 2.0), (400.0, 5.0)])
def test_noise_is_the_spread_of_passes_times_what_became_of_the_machine(yardstick, noise):
    # 1.25 times 1.2 is 1.5, and the machine was as fast, half as fast, four times as fast.
    before = Throughput(1.0, 1, "process", {8: Speed(10.0, 0.25)}, {}, 100.0)
    after = Throughput(1.0, 1, "process", {8: Speed(10.0, 0.2)}, {}, yardstick)
    assert (
        noise_of((before, after), "prefill", 8) == noise_of((after, before), "prefill", 8) == pytest.approx(noise)
    )


def taking(seconds, log, name):
    """Return a pass that takes its turn in a log and says that it took so many seconds."""
    return lambda: log.append(name) or seconds


def test_passes_take_turns_until_each_kind_had_a_second():
    log = []
    seconds = time_in_turns([taking(0.1, log, "a"), taking(0.3, log, "b")])
    assert "".join(log) == "ab" + 5 * "aab"  # one of each that does not count, then turns of 0.2 seconds or more
    assert seconds == [[0.1] * 10, [0.3] * 5]


def test_long_passes_are_few():
    log = []
    assert time_in_turns([taking(5.0, log, "a"), taking(5.0, log, "b")]) == [[5.0] * 3, [5.0] * 3]


def test_reading_and_writing_take_time(model):
    assert read(model, random_ids(model, 3, 8)) > 0
    assert write(model, random_ids(model, 2, 4), steps=1) > 0


def test_what_is_timed_of_writing_begins_with_the_first_token(model, monkeypatch):
    readings = iter([5.0, 6.0, 8.0, 11.0])  # the clock is read when each of four tokens is written, not before
    monkeypatch.setattr("moe_compress.evaluation.throughput.time.perf_counter", lambda: next(readings))
    assert write(model, random_ids(model, 2, 4), steps=3) == 11.0 - 5.0
    assert next(readings, None) is None


def test_a_model_alone_in_a_process(folder):
    found = measure_throughput(folder, (1, 3), "cpu")
    assert list(found.prefill) == list(found.decode) == [1, 3]
    assert min(speed.tokens_per_second for speed in (*found.prefill.values(), *found.decode.values())) > 0
    assert min(found.load_seconds, found.yardstick) > 0
    # At least the weights are resident once they are loaded and used.
    assert found.memory == "process" and found.peak_bytes > measure_size(folder).num_bytes
    assert throughput_from_json(json.loads(json.dumps(as_json(found)))) == found


def test_a_process_that_fails_is_told(tmp_path):
    with pytest.raises(EvaluationError, match=r"timing .* in a process of its own failed \(.*config\.json"):
        measure_throughput(tmp_path, (1,))
