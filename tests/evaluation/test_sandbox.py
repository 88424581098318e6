"""Hostile programs are contained: what each tries to do is not done, and it does not pass."""

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


def test_where_nothing_can_be_confined_nothing_is_run(monkeypatch, tmp_path):
    broken = tmp_path / "confine.py"
    text = Path(confine.__file__).read_text()
    assert "platform.machine()" in text
    broken.write_text(text.replace("platform.machine()", "'another'"))
    monkeypatch.setattr(confine, "__file__", str(broken))
    with pytest.raises(EvaluationError, match=r"cannot confine generated code .*evaluate.run_generated_code off"):
        run_program("pass")
