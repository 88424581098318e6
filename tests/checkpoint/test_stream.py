"""A checkpoint appears whole or not at all, and holds what was planned."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.stats import kstest
from tests.checkpoint.conftest import LAYERS, make_map, make_plan, make_tensors

from moe_compress.checkpoint import copying, pieces
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.jobs import ByteRange, Mean
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import _lock, write_checkpoint
from moe_compress.errors import CheckpointError
from moe_compress.types import ExpertGroup, RouterNoise


def planned(source, *groups, **options):
    return plan_rewrite(read_index(source), make_map(), make_plan(*groups), **options)


def load_all(folder):
    return {name: v for file in sorted(folder.glob("*.safetensors")) for name, v in load_file(file).items()}


def expect(members, weights):
    """Return the tensors after merging, computed from their values with plain numpy."""
    tensors = make_tensors()
    expected = {name: v for name, v in tensors.items() if "experts" not in name}
    for layer in LAYERS:
        stem = f"layers.{layer}"
        for new, (ms, ws) in enumerate(zip(members, weights, strict=True)):
            old = [tensors[f"{stem}.experts.{m}.up.weight"] for m in ms]
            expected[f"{stem}.experts.{new}.up.weight"] = sum(w * o for w, o in zip(ws, old, strict=True))
        gate, bias = tensors[f"{stem}.gate.weight"], tensors[f"{stem}.gate.bias"]
        fused = tensors[f"{stem}.fused"].reshape(4, 2, 5)
        expected[f"{stem}.gate.weight"] = np.stack([gate[list(ms)].mean(axis=0) for ms in members])
        expected[f"{stem}.gate.bias"] = np.stack([bias[:, list(ms)].mean(axis=1) for ms in members], axis=1)
        merged = [
            sum(w * fused[m] for w, m in zip(ws, ms, strict=True)) for ms, ws in zip(members, weights, strict=True)
        ]
        expected[f"{stem}.fused"] = np.concatenate(merged)
    return expected


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize("max_shard_bytes", [1, 100, 1_000_000])
def test_what_is_written_is_what_was_planned(source, tmp_path, max_shard_bytes):
    plan = (ExpertGroup((0, 2), (0.75, 0.25)), 3)
    rewrite = planned(source, *plan, max_shard_bytes=max_shard_bytes)
    write_checkpoint(rewrite, tmp_path / "new")
    assert_same(load_all(tmp_path / "new"), expect([(0, 2), (3,)], [(0.75, 0.25), (1.0,)]))
    index = read_index(tmp_path / "new")
    assert index.tensors == rewrite.tensors
    assert index.config == rewrite.config
    for shard in rewrite.shards:
        assert (tmp_path / "new" / shard.file).stat().st_size == shard.num_bytes


def test_noise_goes_on_merged_router_rows_alone(source, tmp_path):
    plan, index = make_plan(ExpertGroup((0, 2), (0.75, 0.25)), 3), read_index(source)

    def write(noise):
        folder = tmp_path / str(noise)
        write_checkpoint(plan_rewrite(index, make_map(), replace(plan, router_noise=noise)), folder)
        return load_all(folder)

    plain, noisy, other = write(None), write(RouterNoise(0.5, 7)), write(RouterNoise(0.5, 8))
    drawn = []
    for name, values in plain.items():
        if "gate" not in name:
            np.testing.assert_array_equal(noisy[name], values)
            continue
        by_expert = [each if len(each) == 2 else each.T for each in (values, noisy[name], other[name])]
        rows = np.array(by_expert, dtype=np.float64)
        np.testing.assert_array_equal(rows[1:, 1], rows[[0, 0], 1])  # expert 3 is kept as it is
        drawn += (rows[1:, 0] - rows[0, 0]).ravel().tolist()
    assert len(set(np.round(drawn, 3))) == len(drawn)  # no two numbers are one draw
    assert max(map(abs, drawn)) < 5 * 0.5


def test_noise_is_normal_and_the_same_however_it_is_read(tmp_path, monkeypatch):
    values = np.linspace(-1, 1, 40_000, dtype=np.float32)
    values.tofile(tmp_path / "numbers")
    part = ByteRange("numbers", 0, values.nbytes)
    mean = Mean((part, part), (0.5, 0.5), epsilon=0.25, seed=(3, 4))
    with open(tmp_path / "numbers", "rb") as file:
        whole = b"".join(pieces.compute_blocks(mean, "F32", lambda _: file.fileno()))
        monkeypatch.setattr(pieces, "_MEAN_BYTES", 1024)
        assert b"".join(pieces.compute_blocks(mean, "F32", lambda _: file.fileno())) == whole
    noise = (np.frombuffer(whole, "<f4") - values) / 0.25
    assert kstest(noise, "norm").pvalue > 0.01


@pytest.mark.parametrize("has_kernel_copy", [True, False])
def test_both_ways_of_copying_give_the_same_bytes(source, tmp_path, monkeypatch, has_kernel_copy):
    if not has_kernel_copy:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    monkeypatch.setattr(copying, "_BUFFER_BYTES", 7)  # many turns of the loop
    write_checkpoint(planned(source, 0, 3), tmp_path / "new")
    assert_same(load_all(tmp_path / "new"), expect([(0,), (3,)], [(1.0,), (1.0,)]))


def test_small_files_travel_and_nothing_else(source, tmp_path):
    write_checkpoint(planned(source, 0, 3), tmp_path / "new")
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"}
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "content of tokenizer.json"
    assert {file.name for file in tmp_path.iterdir()} == {"source", "new"}


def test_the_config_keeps_its_order_and_letters(source, tmp_path):
    write_checkpoint(planned(source, 0, 3), tmp_path / "new")
    text = (tmp_path / "new" / "config.json").read_text()
    assert list(json.loads(text)) == ["num_experts", "text", "name"]
    assert "näme" in text


def test_progress_ends_at_the_planned_size(source, tmp_path):
    seen = []
    rewrite = planned(source, 0, ExpertGroup((1, 3), (0.5, 0.5)), max_shard_bytes=100)
    write_checkpoint(rewrite, tmp_path / "new", lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (rewrite.num_bytes, rewrite.num_bytes)


def refuse(rewrite, destination, words):
    with pytest.raises(CheckpointError, match=words):
        write_checkpoint(rewrite, destination)
    assert not [file for file in destination.parent.iterdir() if ".partial" in file.name or ".lock" in file.name]


def test_an_existing_destination_is_not_touched(source, tmp_path):
    (tmp_path / "new").mkdir()
    refuse(planned(source, 0), tmp_path / "new", "exists already")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    refuse(planned(source, 0), tmp_path / "dangling", "exists already")


def test_a_destination_that_appears_meanwhile_is_not_touched(source, tmp_path):
    def appear(done, total):
        (tmp_path / "new").mkdir(exist_ok=True)
        (tmp_path / "new" / "theirs").touch()

    with pytest.raises(CheckpointError, match="appeared while it was being written"):
        write_checkpoint(planned(source, 0), tmp_path / "new", appear)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["theirs"]
    assert {file.name for file in tmp_path.iterdir()} == {"source", "new"}


def test_a_full_disk_is_noticed_before_writing(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    refuse(planned(source, 0), tmp_path / "new", r"needs 0\.0 GB and .* has 0\.0 GB free")


def test_a_source_that_was_cut_since_planning(source, tmp_path):
    rewrite = planned(source, 0, 1, 2, 3)
    file = source / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    refuse(rewrite, tmp_path / "new", "changed while it was read")


def test_a_source_that_vanished_since_planning(source, tmp_path):
    rewrite = planned(source, 0)
    (source / "model-00002-of-00002.safetensors").unlink()
    refuse(rewrite, tmp_path / "new", "is missing")


def test_headers_that_are_not_the_planned_ones_are_not_published(source, tmp_path):
    rewrite = planned(source, 0)

    def damage(done, total):
        if done == total:
            (file,) = tmp_path.glob(".new.partial-*/model.safetensors")
            content = file.read_bytes()
            file.write_bytes(content.replace(b"embed.weight", b"embed.height"))

    with pytest.raises(CheckpointError, match="differs from the planned header"):
        write_checkpoint(rewrite, tmp_path / "new", damage)
    assert {file.name for file in tmp_path.iterdir()} == {"source"}


def test_two_runs_do_not_write_the_same_destination(source, tmp_path):
    with (tmp_path / ".new.lock").open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="is being written by another run"):
            write_checkpoint(planned(source, 0), tmp_path / "new")
    write_checkpoint(planned(source, 0), tmp_path / "new")


def test_a_lock_on_a_file_that_is_gone_keeps_nobody_out_and_is_not_held(source, tmp_path, monkeypatch):
    path = tmp_path / ".new.lock"
    real = fcntl.flock
    inodes = []

    def flock(stream, how):
        inodes.append(os.fstat(stream.fileno()).st_ino)
        if len(inodes) == 1:  # the run that held this file ends now, and another makes its own
            path.rename(tmp_path / "gone")
            path.touch()
        if len(inodes) == 2:  # and once more, with nobody after it
            path.unlink()
        real(stream, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with _lock(tmp_path / "new"):
        assert inodes[-1] == path.stat().st_ino
        assert len(inodes) == 3
        with pytest.raises(CheckpointError, match="is being written by another run"), _lock(tmp_path / "new"):
            pass
    assert not path.exists()


def test_two_threads_never_hold_the_same_lock(tmp_path):
    holders, most = [], []

    def take(number):
        for _ in range(300):
            try:
                with _lock(tmp_path / "new"):
                    holders.append(number)
                    most.append(len(holders))
                    time.sleep(0)
                    holders.remove(number)
            except CheckpointError:
                continue

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}


def test_what_the_operating_system_refuses_is_one_sentence(source, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    refuse(planned(source, 0), tmp_path / "new", r"new cannot be written \(.*No space left on device\)")


KILLED = """
import os, signal, sys
from pathlib import Path
from moe_compress.checkpoint import stream
from tests.checkpoint.test_stream import planned

source, destination, moment = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "rename":
    os.rename = die
elif moment == "config":
    real = stream._write_file
    stream._write_file = lambda path, content: die() if path.name == "config.json" else real(path, content)

def progress(done, total):
    if moment != "rename" and moment != "config" and done >= float(moment) * total:
        die()

stream.write_checkpoint(planned(source, 0, 3, max_shard_bytes=100), destination, progress)
"""


@pytest.mark.parametrize("moment", ["0.0", "0.5", "1.0", "config", "rename"])
def test_a_killed_run_leaves_nothing_that_loads_and_the_next_completes(source, tmp_path, moment):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), source, tmp_path / "new", moment]
    path = os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "new").exists()
    (leftover,) = tmp_path.glob(".new.partial-*")
    if moment == "rename":  # all that is missing is the name
        assert_same(load_all(leftover), expect([(0,), (3,)], [(1.0,), (1.0,)]))
    else:
        assert not (leftover / "config.json").exists()
    write_checkpoint(planned(source, 0, 3, max_shard_bytes=100), tmp_path / "new")
    assert_same(load_all(tmp_path / "new"), expect([(0,), (3,)], [(1.0,), (1.0,)]))
    assert {file.name for file in tmp_path.iterdir()} == {"source", "new"}
