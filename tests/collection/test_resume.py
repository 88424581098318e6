"""A collection that is killed, runs out of disk or loses a shard goes on and ends with the same bits."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests import tiny_families
from tests.collection.conftest import (
    assert_same_bits,
    layout_of,
    load_plain,
    make_domains,
    make_sums,
    read_files,
    run_resident,
    run_streamed,
)
from tests.collection.interrupted import collect, read_in_little_memory, tidy

from moe_compress.collection.hidden import HiddenStates
from moe_compress.collection.progress import Progress
from moe_compress.collection.replay import LayerOutput
from moe_compress.collection.resume import ResumePoint, bytes_held, remove_finished, remove_stale
from moe_compress.collection.streamed import StreamedModel, collect_streamed
from moe_compress.errors import CheckpointError, ResourceError, StatisticsError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def processes():
    """Processes that have the libraries imported, each killable on its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tests.collection.interrupted", "transformers.models.qwen3_moe.modeling_qwen3_moe"]
    )
    return context


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep")
    tiny_families.save("qwen3_moe", folder, num_hidden_layers=8, mlp_only_layers=[])
    return folder


def finish(processes, *arguments):
    process = processes.Process(target=collect, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == 0
    return load_file(arguments[2])


def test_killed_at_random_moments_it_ends_with_the_same_bits(processes, deep, tmp_path):
    finish(processes, deep, tmp_path / "warm", tmp_path / "warm.safetensors", True)
    started = time.perf_counter()
    expected = finish(processes, deep, tmp_path / "whole", tmp_path / "whole.safetensors", True)
    seconds = time.perf_counter() - started
    rng, killed, resumed = random.Random(0), 0, 0
    for trial in range(10):
        folder, result, keep = tmp_path / f"killed-{trial}", tmp_path / f"{trial}.safetensors", bool(trial % 2)
        process = processes.Process(target=collect, args=(deep, folder, result, keep))
        process.start()
        time.sleep(seconds * rng.uniform(0.1, 0.9))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        resumed += any(folder.glob("*/hidden-*")) and any(folder.glob("*/layer-*"))
        found = finish(processes, deep, folder, result, keep)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert not list(folder.glob("*/hidden-*"))
    assert killed >= 5 and resumed >= 2


class _Stop(Progress):
    """Does something when a layer starts."""

    def __init__(self, layer, action):
        super().__init__(1, 8)
        self._at, self._action = layer, action

    def start_layer(self, layer):
        super().start_layer(layer)
        if layer == self._at:
            self._action()


def run(folder, point, progress):
    files, domains = read_files(folder), make_domains()
    model = load_plain("qwen3_moe", folder, torch.float32)
    sums = make_sums(layout_of(model), domains)
    with closing(point):
        collect_streamed(StreamedModel(files, torch.float32, CPU), domains, sums, point, progress)
    return sums


def expected_of(folder):
    model = load_plain("qwen3_moe", folder, torch.float32)
    return run_resident(model, layout_of(model), make_domains())


def files_in(folder):
    return {path.name.partition(".")[0] for path in folder.glob("*/*")}


def test_a_full_disk_is_one_error_and_nothing_is_lost(deep, tmp_path):
    def fill():
        (next(tmp_path.glob("*")) / "hidden-3.bin").symlink_to("/dev/full")

    point = ResumePoint(tmp_path, "a" * 64, keep=False)
    with pytest.raises(ResourceError, match=r"the disk of .* is full; free space there.*last finished layer"):
        run(deep, point, _Stop(3, fill))
    assert files_in(tmp_path) == {"hidden-2", "layer-0", "layer-1", "layer-2", "lock"}
    restarted = []

    class Watch(Progress):
        def start_layer(self, layer):
            restarted.append(layer)

    assert_same_bits(run(deep, ResumePoint(tmp_path, "a" * 64, keep=False), Watch(1, 8)), expected_of(deep))
    assert restarted == [3, 4, 5, 6, 7]


def test_a_shard_that_vanishes_is_one_error_and_nothing_is_lost(deep, tmp_path):
    folder = shutil.copytree(deep, tmp_path / "model")
    work = tmp_path / "work"
    last = max(folder.glob("*.safetensors"))

    def lose():
        last.rename(tmp_path / "away")

    with pytest.raises(CheckpointError, match="can no longer be read"):
        run(folder, ResumePoint(work, "a" * 64, keep=True), _Stop(1, lose))
    assert {"layer-0", "lock"} < files_in(work)
    (tmp_path / "away").rename(last)
    assert_same_bits(run(folder, ResumePoint(work, "a" * 64, keep=True), Progress(1, 8)), expected_of(folder))


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ("self_attn.o_proj", "in what 'model.layers.3.mlp.experts' read; check the weights of the attention"),
        ("mlp.gate", "in what the router said to 'model.layers.3.mlp.experts'; check the weights of that router"),
        ("mlp.experts.1.down_proj", "in the output of expert 1 of 'model.layers.3.mlp.experts'; check the weights"),
    ],
)
def test_damaged_weights_are_one_error_and_mended_it_goes_on(deep, tmp_path, part, where):
    folder, work = shutil.copytree(deep, tmp_path / "model"), tmp_path / "work"
    name = f"model.layers.3.{part}.weight"
    shard = folder / read_files(folder).tensors[name].file
    whole = shard.read_bytes()
    save_file(load_file(shard) | {name: torch.full_like(load_file(shard)[name], torch.nan)}, shard)
    with pytest.raises(StatisticsError, match=f"NaN or infinity {where}.*float32; finished layers are kept"):
        run(folder, ResumePoint(work, "a" * 64, keep=True), Progress(1, 8))
    assert files_in(work) == {"hidden-2", "layer-0", "layer-1", "layer-2", "lock"}
    shard.write_bytes(whole)
    started = []

    class Watch(Progress):
        def start_layer(self, layer):
            started.append(layer)

    assert_same_bits(run(folder, ResumePoint(work, "a" * 64, keep=True), Watch(1, 8)), expected_of(deep))
    assert started == [3, 4, 5, 6, 7]


def test_memory_that_runs_out_is_one_error_and_nothing_is_lost(deep, tmp_path):
    with pytest.raises(ResourceError, match=r"memory ran out.*goes on from the last finished layer"):
        run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), _Stop(2, lambda: torch.empty(1 << 55)))
    assert files_in(tmp_path) == {"hidden-1", "layer-0", "layer-1", "lock"}


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive"),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_is_known_by_what_libraries_say(deep, tmp_path, error):
    def fail():
        raise error

    with pytest.raises(ResourceError, match="memory ran out while a layer was read or run"):
        run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), _Stop(2, fail))


def test_disk_holds_two_layers_outputs_at_most(deep, tmp_path):
    most = []

    class Watch(Progress):
        def add_tokens(self, num_tokens):
            most.append(len(list(tmp_path.glob("*/hidden-*"))))

    run(deep, ResumePoint(tmp_path, "a" * 64, keep=False), Watch(1, 8))
    assert max(most) == 2
    assert files_in(tmp_path) == {"lock", *(f"layer-{layer}" for layer in range(8))}


def test_a_finished_collection_is_not_run_again_until_it_is_removed(deep, tmp_path):
    first = run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Progress(1, 8))

    class Never(Progress):
        def start_layer(self, layer):
            raise AssertionError

    assert_same_bits(run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Never(1, 8)), first)
    remove_finished(tmp_path)
    assert not list(tmp_path.glob("*"))
    with pytest.raises(AssertionError):
        run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Never(1, 8))


def test_processes_that_finish_together_do_not_stop_each_other(processes, deep, tmp_path):
    run(deep, ResumePoint(tmp_path / "one", "a" * 64, keep=True), Progress(1, 8))
    (point,) = (tmp_path / "one").glob("*")
    for number in range(8):
        shutil.copytree(point, tmp_path / "all" / (str(number) * 16))
    together = processes.Barrier(8)
    ranks = [processes.Process(target=tidy, args=(tmp_path / "all", together)) for _ in range(8)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * 8
    assert not list((tmp_path / "all").glob("*"))


def test_what_a_killed_process_did_not_remove_is_removed_by_the_next(deep, tmp_path, monkeypatch):
    run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Progress(1, 8))

    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shutil, "rmtree", die)
        remove_finished(tmp_path)
    assert not list(tmp_path.glob("[!.]*"))  # nobody goes on from half of it
    remove_finished(tmp_path)
    assert not list(tmp_path.glob("*"))


def test_a_finished_collection_that_is_being_read_is_not_removed(deep, tmp_path):
    run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Progress(1, 8))
    reading = ResumePoint(tmp_path, "a" * 64, keep=True)
    assert reading.restore() == 8
    remove_finished(tmp_path)
    assert files_in(tmp_path) == {"lock", *(f"layer-{layer}" for layer in range(8))}
    reading.close()
    remove_finished(tmp_path)
    assert not list(tmp_path.glob("*"))


def test_an_unfinished_collection_is_not_removed(deep, tmp_path):
    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), _Stop(2, stop))
    remove_finished(tmp_path)
    assert files_in(tmp_path) == {"hidden-1", "layer-0", "layer-1", "lock"}


def test_what_other_code_left_unfinished_is_removed_and_said(deep, tmp_path, caplog):
    def stop():
        raise KeyboardInterrupt

    current = tmp_path / "current"
    with pytest.raises(KeyboardInterrupt):
        run(deep, ResumePoint(current, "a" * 64, keep=True), _Stop(2, stop))
    (point,) = current.glob("*")
    kept = sorted(current.rglob("*"))
    shutil.copytree(point, tmp_path / "older" / "one")
    shutil.copytree(point, tmp_path / "before-versions-had-folders")
    shutil.copytree(point, tmp_path / "older" / ".two.finished")
    (tmp_path / "older" / ".two.finished" / "lock").unlink()  # a process was killed while it removed this
    running = ResumePoint(tmp_path / "other", "a" * 64, keep=True)
    running.restore()
    with caplog.at_level("INFO", logger="moe_compress"):
        remove_stale(tmp_path, current)
    assert f"removed {tmp_path / 'older' / 'one'} (0.0 GB), a collection that other code left" in caplog.text
    assert sorted(path.name for path in tmp_path.glob("*")) == ["current", "other"]
    assert sorted(current.rglob("*")) == kept and files_in(tmp_path / "other") == {"lock"}
    running.close()
    remove_stale(tmp_path, current)
    assert [*tmp_path.glob("*")] == [current]


def test_a_batch_that_could_not_be_written_is_no_other_batchs(tmp_path):
    with ThreadPoolExecutor(1) as writer:
        states = HiddenStates(tmp_path / "states", keep=True, writer=writer)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            for part in (torch.zeros(2, 3), _Unwritable(), torch.ones(2, 3)):
                states.append(LayerOutput((part,), is_tuple=False))
            writer.submit(states.finish).result()
        states.delete()


class _Unwritable(torch.Tensor):
    """A part for whose copy there is no memory."""

    def to(self, *_, **__):
        return self

    def permute(self, *_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_what_an_interrupted_collection_holds_is_known(deep, tmp_path):
    def stop():
        raise KeyboardInterrupt

    assert bytes_held(None, "a" * 64) == bytes_held(tmp_path, "a" * 64) == 0
    with pytest.raises(KeyboardInterrupt):
        run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), _Stop(2, stop))
    found = bytes_held(tmp_path, "a" * 64)
    assert found == sum(path.stat().st_size for path in tmp_path.glob("*/*")) > 0
    assert bytes_held(tmp_path, "b" * 64) == 0


def test_a_finished_collection_is_not_removed_before_it_is_closed(deep, tmp_path):
    """Other ranks may still be at theirs, and this one's sums are nowhere else."""
    files, domains = read_files(deep), make_domains()
    sums = make_sums(layout_of(load_plain("qwen3_moe", deep, torch.float32)), domains)
    with closing(ResumePoint(tmp_path, "a" * 64, keep=True)) as point:
        collect_streamed(StreamedModel(files, torch.float32, CPU), domains, sums, point, Progress(1, 8))
        remove_finished(tmp_path)
        assert files_in(tmp_path) == {"lock", *(f"layer-{layer}" for layer in range(8))}
    remove_finished(tmp_path)
    assert not list(tmp_path.glob("*"))


def test_another_collection_does_not_go_on_from_this_one(deep, tmp_path):
    run(deep, ResumePoint(tmp_path, "a" * 64, keep=True), Progress(1, 8))
    started = []

    class Watch(Progress):
        def start_layer(self, layer):
            started.append(layer)

    run(deep, ResumePoint(tmp_path, "a" * 16 + "b" * 48, keep=True), Watch(1, 8))
    assert started[0] == 0


def test_two_processes_at_one_collection_are_refused(deep, tmp_path):
    files, domains = read_files(deep), make_domains()
    layout = layout_of(load_plain("qwen3_moe", deep, torch.float32))
    first = ResumePoint(tmp_path, "a" * 64, keep=True)
    first.restore()
    with pytest.raises(ResourceError, match="another process is at the same collection"):
        run_streamed(files, layout, domains, point=ResumePoint(tmp_path, "a" * 64, keep=True))
    first.close()


@pytest.fixture
def written(tmp_path):
    """A file with one layer's output for one batch, and where in it that lies."""
    with ThreadPoolExecutor(1) as writer:
        states = HiddenStates(tmp_path / "states", keep=False, writer=writer)
        states.append(LayerOutput((torch.full((2, 3, 4), 7.0),), is_tuple=False))
        return tmp_path / "states", writer.submit(states.finish).result()


def test_outputs_are_read_from_a_file_that_is_larger_than_memory(processes, written):
    path, places = written
    os.truncate(path, 1 << 37)  # sparse: no disk either
    process = processes.Process(target=read_in_little_memory, args=(path, places, 1 << 30))
    process.start()
    process.join()
    assert process.exitcode == 0


def test_outputs_of_a_file_that_lost_its_end_are_refused(written):
    path, places = written
    os.truncate(path, 90)
    states = HiddenStates.reopen(path, places)
    with pytest.raises(ResourceError, match=r"states ends 6 bytes before the end.*remove the folder.*starts anew"):
        states.take(0)
    states.close()


def test_outputs_come_back_from_their_file_as_they_were(tmp_path):
    outputs = [
        LayerOutput((torch.randn(2, 3, 4).bfloat16(), None, torch.tensor([[1, 2]])), is_tuple=True),
        LayerOutput((torch.randn(1, 5, 4),), is_tuple=False),
    ]
    with ThreadPoolExecutor(1) as writer:
        states = HiddenStates(tmp_path / "states", keep=False, writer=writer)
        for output in outputs:
            states.append(output)
        places = writer.submit(states.finish).result()
    again = HiddenStates.reopen(tmp_path / "states", places)
    for number, output in enumerate(outputs):
        found = again.take(number)
        assert found.is_tuple == output.is_tuple
        for ours, theirs in zip(found.parts, output.parts, strict=True):
            assert (ours is None) == (theirs is None) and (ours is None or torch.equal(ours, theirs))
    again.delete()
    assert not (tmp_path / "states").exists()
