"""Two runs of one domain: the second is told who is at it; a run that is killed leaves no lock behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import moe_compress
from moe_compress.errors import MoeCompressError
from moe_compress.pipelines.run_lock import RunLock

HOLD = (
    "import time; from moe_compress.pipelines.run_lock import RunLock; lock = RunLock(); lock.acquire('medical');"
    "print('held', flush=True); time.sleep(60)"
)


def hold():
    environment = {**os.environ, "PYTHONPATH": str(Path(moe_compress.__file__).parents[1])}
    return subprocess.Popen([sys.executable, "-c", HOLD], env=environment, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def holder(tmp_path, monkeypatch):
    """Another process that compresses for `medical`."""
    monkeypatch.chdir(tmp_path)
    process = hold()
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_run_is_told_and_another_domain_goes_on(holder):
    with pytest.raises(MoeCompressError, match=rf"another run compresses for 'medical' \(process {holder.pid}, "):
        RunLock().acquire("medical")
    other = RunLock()
    other.acquire("code")
    other.release()


def test_a_killed_run_leaves_no_lock(holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    lock = RunLock()
    lock.acquire("medical")
    lock.acquire("medical")  # the same run again
    lock.release()
    lock.release()


def test_the_next_run_learns_which_run_had_the_lock(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lock = RunLock()
    assert [lock.acquire("medical", run) for run in ("first", "second", None, None)] == [
        None,
        "first",
        "second",
        None,
    ]
    lock.release()


def test_a_holder_that_has_not_yet_said_who_it_is(holder):
    (holder_file,) = (path for path in os.scandir("data/02_intermediate/locks") if path.name == "medical.json")
    os.truncate(holder_file, 0)
    with pytest.raises(MoeCompressError, match="it has only just begun"):
        RunLock().acquire("medical")


def test_kedro_run_stops(project, monkeypatch):
    process = hold()
    with process:
        assert process.stdout.readline() == "held\n"
        result = project.prune()
        process.kill()
    assert result.exit_code == 1 and "another run compresses for 'medical'" in " ".join(result.output.split())
