"""A compressed checkpoint is put in its place whole, and none that was released is overwritten."""

from __future__ import annotations

import itertools
import json
import os
import signal
import struct
import sys
from functools import partial
from multiprocessing import get_context

import pytest
from tests.datasets.test_checkpoint import write_checkpoint

from moe_compress.checkpoint.checksums import find_damage, read_checksums, write_checksums
from moe_compress.datasets.checkpoint import refer_to
from moe_compress.datasets.rewritten import is_released_as_another, newest, put


def release(folder, value=1.0):
    """Write a checkpoint and what a release puts beside it."""
    write_checkpoint(folder, value)
    (folder / "MLmodel").write_text("registered")
    write_checksums(folder, refer_to(folder, None).files)
    return folder


def is_intact(folder):
    return (folder / "MLmodel").is_file() and not find_damage(folder, read_checksums(folder))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def value_of(folder):
    return struct.unpack("<f", (folder / "model.safetensors").read_bytes()[-4:])[0]


@pytest.fixture
def model(tmp_path):
    """A checkpoint that was released, with its records beside its weights."""
    return release(tmp_path / "model")


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path, model):
    def fail(place):
        assert (model / "MLmodel").is_file()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        put(model, fail)
    assert names(tmp_path) == ["model"] and is_intact(model)


def test_a_checkpoint_that_is_written_again_stays_with_its_records(tmp_path, model):
    before = (model / "model.safetensors").stat()
    put(model, write_checkpoint)
    assert names(tmp_path) == ["model"] and is_intact(model)
    assert (model / "model.safetensors").stat().st_ino == before.st_ino


def test_a_checkpoint_that_was_not_released_is_replaced_whole_by_other_weights_or_settings(tmp_path):
    model = tmp_path / "model"
    write_checkpoint(model)
    put(model, partial(write_checkpoint, value=2.0))
    assert names(tmp_path) == ["model"] and names(model) == ["config.json", "model.safetensors"]
    assert value_of(model) == 2.0
    (model / "config.json").write_text("{}")
    put(model, partial(write_checkpoint, value=2.0))
    assert json.loads((model / "config.json").read_text()) == {"model_type": "toy"}


def test_other_bytes_than_were_released_go_beside_and_those_that_failed_a_gate_are_replaced(
    tmp_path, model, caplog
):
    put(model, partial(write_checkpoint, value=2.0))
    second = newest(model)
    assert second == tmp_path / "2" / "model" and value_of(second) == 2.0 and is_intact(model)
    assert f"{model} was released with other bytes and stays (0.0 GB); these are in {second}" in caplog.text
    put(model, partial(write_checkpoint, value=3.0))
    assert newest(model) == second and value_of(second) == 3.0 and names(second.parent) == ["model"]
    put(model, partial(write_checkpoint, value=3.0))  # the same once more: no further copy
    release(second, value=3.0)
    put(model, partial(write_checkpoint, value=4.0))
    assert value_of(newest(model)) == 4.0 and is_intact(model) and is_intact(second)
    assert names(tmp_path) == ["2", "3", "model"]


def test_what_a_checkpoint_was_released_as_counts_and_not_what_it_holds(tmp_path, model):
    write_checkpoint(model, value=2.0)  # damaged; its checksums say otherwise
    put(model, partial(write_checkpoint, value=3.0))
    assert value_of(newest(model)) == 3.0 and value_of(model) == 2.0
    (model / "checksums.sha256").unlink()
    assert is_released_as_another(model, refer_to(newest(model), None).files)


@pytest.mark.parametrize("damaged", ["config.json", "model.safetensors"])
def test_a_damaged_checkpoint_is_replaced_by_what_it_was_released_as(tmp_path, model, damaged):
    (model / damaged).unlink()
    put(model, write_checkpoint)
    assert names(tmp_path) == ["model"] and names(model) == ["config.json", "model.safetensors"]


def test_damage_that_no_time_of_change_tells_of_is_found(model):
    file = model / "model.safetensors"
    status = file.stat()
    file.write_bytes(file.read_bytes()[:-4] + struct.pack("<f", 3.0))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    put(model, write_checkpoint)
    assert value_of(model) == 1.0


TOUCHES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def put_until(model, moment):
    """Replace a model, and be killed before so many touches of files have happened."""
    left = itertools.count(moment, -1)

    def count(event, arguments):
        is_touch = event in TOUCHES or (event == "open" and str(model.parent) in str(arguments[0]))
        if is_touch and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    put(model, partial(write_checkpoint, value=2.0))


def kill_at_every_moment(tmp_path, lay_out):
    """Yield the place of a model that `lay_out` made, after each moment at which putting another can be killed."""
    for moment in itertools.count():
        model = tmp_path / f"at-{moment}" / "model"
        lay_out(model)
        process = get_context("fork").Process(target=put_until, args=(model, moment))
        process.start()
        process.join()
        if process.exitcode == 0:
            return
        assert process.exitcode == -signal.SIGKILL
        yield model


def test_killed_at_any_moment_the_old_checkpoint_is_there_or_the_new_one_and_the_next_run_mends_the_rest(tmp_path):
    found = set()
    for model in kill_at_every_moment(tmp_path, write_checkpoint):
        is_new = model.exists() and value_of(model) == 2.0
        assert is_new or any(model.parent.glob("*/config.json"))
        found.add("new" if is_new else "old" if model.exists() else "between")
        put(model, write_checkpoint)
        assert names(model.parent) == ["model"] and value_of(model) == 1.0
    assert found == {"old", "between", "new"}


def test_killed_at_any_moment_a_released_checkpoint_is_whole(tmp_path):
    found = set()
    for model in kill_at_every_moment(tmp_path, release):
        assert is_intact(model)
        found.add(newest(model).exists() and value_of(newest(model)))
        put(model, partial(write_checkpoint, value=2.0))
        assert names(model.parent) == ["2", "model"] and is_intact(model) and value_of(newest(model)) == 2.0
    assert found == {1.0, False}  # the rename is the last touch
