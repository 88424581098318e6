"""Hostile programs are contained: what each tries to do is not done, and it does not pass."""

import os
import platform
import resource
import sys
from pathlib import Path

import pytest

from moe_compress.errors import EvaluationError
from moe_compress.evaluation import confine
from moe_compress.evaluation.sandbox import run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="generated code runs on Linux only")


def test_a_right_program_passes_and_may_import_pythons_own_modules():
    assert run_program("import collections, heapq, math, re\nassert math.gcd(4, 6) == 2").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def f(", "SyntaxError"),
        ("while True: pass", "left with code -9"),
        ("import time; time.sleep(60)", "no end within 5 s"),
        ("import os; os.fork()", "PermissionError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import socket; socket.socket()", "PermissionError"),
        ("import os; os.kill(os.getppid(), 9)", "PermissionError"),
        ("open('/etc/hosts').read()", "PermissionError"),
        ("bytearray(8 << 30)", "MemoryError"),
    ],
)
def test_a_wrong_or_hostile_program_fails_for_its_own_reason(program, reason):
    result = run_program(program, seconds=1)
    assert not result.passed and reason in result.reason


@pytest.mark.parametrize(
    ("leave", "reason"),
    [
        ("import os; os._exit(0)", "left with code 0"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise SystemExit", "SystemExit"),
        ("exit()", "SystemExit"),
        ("quit()", "SystemExit"),
    ],
)
def test_leaving_before_the_end_is_no_pass(leave, reason):
    result = run_program(f"{leave}\nassert False")
    assert not result.passed and reason in result.reason


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.remove({path!r})",
        "import os; os.rename({path!r}, {path!r} + '.old')",
        "import os; os.chmod({path!r}, 0)",
        "import os; os.utime({path!r}, (0, 0))",
        "import os; os.setxattr({path!r}, 'user.a', b'b')",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.symlink({path!r}, {path!r} + '.link')",
        "import shutil; shutil.rmtree({folder!r})",
        "open({path!r}, 'w').write('gone')",
        "open({folder!r} + '/new', 'w')",
    ],
)
def test_files_stay_as_they_are(tmp_path, attack):
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "file"
    path.write_text("kept")
    before = path.stat()
    result = run_program(attack.format(path=str(path), folder=str(folder)))
    after = path.stat()
    assert not result.passed
    assert [entry.name for entry in folder.iterdir()] == ["file"] and path.read_text() == "kept"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_endless_output_fills_no_memory_here():
    assert not run_program("while True: print('x' * 1_000_000)", seconds=1).passed


def test_the_environment_holds_no_secrets(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    assert run_program("import os; assert 'SECRET_TOKEN' not in os.environ").passed


@pytest.fixture
def old_kernel(monkeypatch, tmp_path):
    """Confinement as a kernel with Landlock's first ABI gives it, with one more folder to read."""
    old, folder = tmp_path / "confine.py", tmp_path / "readable"
    folder.mkdir()
    text = Path(confine.__file__).read_text()
    table, places = "(13, 14, 15, 15, 16, 16)", "(sys.base_prefix, *sys.path)"
    assert table in text and places in text
    old.write_text(text.replace(table, "(13,)").replace(places, f"(sys.base_prefix, *sys.path, {str(folder)!r})"))
    monkeypatch.setattr(confine, "__file__", str(old))
    return folder


@pytest.mark.parametrize(
    "attack",
    [
        "import os; os.truncate({path!r}, 0)",
        "import os; os.open({path!r}, os.O_RDONLY | os.O_TRUNC)",
        "open({path!r}, 'w')",
    ],
)
@pytest.mark.parametrize("place", ["file", "readable/file"])
def test_files_stay_as_they_are_where_landlock_knows_no_truncation(old_kernel, tmp_path, attack, place):
    path = tmp_path / place
    path.write_text("kept")
    result = run_program(attack.format(path=str(path)))
    assert not result.passed and "PermissionError" in result.reason
    assert path.read_text() == "kept"


def test_reading_still_works_where_landlock_is_old(old_kernel):
    (old_kernel / "file").write_text("read")
    assert run_program(f"assert open({str(old_kernel / 'file')!r}).read() == 'read'").passed


_LIBC = "import ctypes, fcntl, os, resource\nlibc, above = ctypes.CDLL(None), os.getppid()\n"


@pytest.mark.parametrize(
    "attack",
    [
        "resource.prlimit(above, resource.RLIMIT_NOFILE, (200, 200))",
        "os.sched_setaffinity(above, {0})",
        "os.setpriority(os.PRIO_PROCESS, above, 10)",
        "os.sched_setscheduler(above, os.SCHED_BATCH, os.sched_param(0))",
        "fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, above)",
        "fcntl.fcntl(os.pipe()[0], 10, 9)",
        "fcntl.fcntl(os.pipe()[0], 15, bytes(8))",
        "if libc.unshare(0x10000000): raise PermissionError",
        "if libc.shmget(0, 4096, 0o1600) < 0: raise PermissionError",
        "own = ctypes.CDLL(None, use_errno=True)\n"
        "if own.shmctl(0, 2, bytes(512)) < 0 and ctypes.get_errno() == 1: raise PermissionError",
    ],
)
def test_nothing_beyond_the_process_is_reached(attack):
    before = resource.getrlimit(resource.RLIMIT_NOFILE), os.sched_getaffinity(0), os.getpriority(0, 0)
    result = run_program(_LIBC + attack)
    assert not result.passed and "PermissionError" in result.reason
    assert before == (resource.getrlimit(resource.RLIMIT_NOFILE), os.sched_getaffinity(0), os.getpriority(0, 0))


def test_a_program_may_look_at_and_lower_its_own_limits():
    assert run_program(
        "import os, resource\n"
        "os.sched_getaffinity(0)\n"
        "hard = resource.getrlimit(resource.RLIMIT_STACK)[1]\n"
        "resource.setrlimit(resource.RLIMIT_STACK, (1 << 20, hard))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
    ).passed


@pytest.mark.skipif(os.geteuid() != 0, reason="asks whether root keeps root's powers")
def test_roots_powers_are_gone():
    assert run_program(
        f"{_LIBC}assert libc.sethostname({platform.node().encode()!r}, {len(platform.node())})"
    ).passed


def test_where_nothing_can_be_confined_nothing_is_run(monkeypatch, tmp_path):
    broken = tmp_path / "confine.py"
    text = Path(confine.__file__).read_text()
    assert "platform.machine()" in text
    broken.write_text(text.replace("platform.machine()", "'another'"))
    monkeypatch.setattr(confine, "__file__", str(broken))
    with pytest.raises(EvaluationError, match=r"cannot confine generated code .*evaluate.run_generated_code off"):
        run_program("pass")
