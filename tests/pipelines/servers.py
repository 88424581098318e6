"""What a team runs, on free ports of this machine: PostgreSQL, an S3-compatible store, and MLflow on both."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

BUCKET = "models"
WAIT_SECONDS = 120


def find_postgres():
    """Return the folder of PostgreSQL's programs, or None; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "initdb").is_file()), None)


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_until(ready, process, log):
    end = time.monotonic() + WAIT_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"{process.args[0]} did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def listens(port):
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def start(command, log, env=None, **options):
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            stdout=file,
            stderr=file,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            **options,
        )


def stop(process, how=signal.SIGKILL):
    if process.poll() is None:
        os.killpg(process.pid, how)
        process.wait(WAIT_SECONDS)


@contextmanager
def postgres(password):
    """Yield the address of a new PostgreSQL; it refuses to run as root, and so becomes `nobody` there."""
    programs = find_postgres()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    who = {"user": "nobody", "extra_groups": []} if os.geteuid() == 0 else {}
    (folder / "password").write_text(password)
    if who:
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody")
    port, data = free_port(), folder / "data"
    make = [programs / "initdb", "-D", data, "-U", "mlflow", "--auth=scram-sha-256", "--no-sync", "--no-locale"]
    try:
        subprocess.run(
            [*make, "--encoding=UTF8", f"--pwfile={folder / 'password'}"],
            check=True,
            capture_output=True,
            cwd=folder,
            **who,
        )
        serve = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port]
        settings = ["-c", "unix_socket_directories=", "-c", "fsync=off"]
        log = folder / "log"
        process = start([*serve, *settings], log, cwd=folder, **who)
        try:
            wait_until(lambda: listens(port), process, log)
            yield f"postgresql+psycopg2://mlflow:{password}@127.0.0.1:{port}/postgres"
        finally:
            stop(process, signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def object_store(folder):
    """Yield the address of a new S3-compatible store."""
    port, log = free_port(), folder / "objects.log"
    process = start([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port], log)
    try:
        wait_until(lambda: listens(port), process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        stop(process)


class TrackingServer:
    """`mlflow server`, which can go away and come back under the same address."""

    def __init__(self, folder, database):
        self.port, self.log = free_port(), folder / "mlflow-server.log"
        self.address = f"http://127.0.0.1:{self.port}"
        self.env = {"MLFLOW_BACKEND_STORE_URI": database, "MLFLOW_TRACKING_URI": ""}
        self.process = None

    def start(self):
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", self.port]
        store = ["--no-serve-artifacts", "--default-artifact-root", f"s3://{BUCKET}/mlflow", "--workers", 1]
        self.process = start([*command, *store], self.log, self.env)
        wait_until(lambda: answers(f"{self.address}/health"), self.process, self.log)

    def stop(self):
        stop(self.process)
