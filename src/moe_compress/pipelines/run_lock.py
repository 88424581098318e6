"""One run at a time releases for a domain: a second one is told who is at it, and stops."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from moe_compress.errors import MoeCompressError

FOLDER = Path("data/02_intermediate/locks")


class RunLock:
    """A lock that the operating system gives back when the process ends, however it ends.

    It holds among the runs of one project folder; runs on several machines are kept apart by whatever starts them.
    """

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def acquire(self, domain: str, run_id: str | None = None) -> str | None:
        """Take the lock of a domain.

        Args:
            domain: the domain.
            run_id: the MLflow run that takes it, if there is one.

        Returns:
            The MLflow run that had it before on this machine, if known; it has ended, whatever MLflow says.

        Raises:
            MoeCompressError: if another run has it, naming its process.
        """
        self.release()
        FOLDER.mkdir(parents=True, exist_ok=True)
        holder, lock = FOLDER / f"{domain}.json", FileLock(FOLDER / f"{domain}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise MoeCompressError(
                f"another run compresses for '{domain}' ({_read(holder)}); wait until it has ended and try again"
            ) from error
        self._lock = lock
        before, host = _content(holder), socket.gethostname()
        since = datetime.now(UTC).isoformat(timespec="seconds")
        own = {"process": os.getpid(), "host": host, "since": since}
        holder.write_text(json.dumps({**own, **({"run": run_id} if run_id else {})}))
        return before.get("run") if before.get("host") == host else None

    def release(self) -> None:
        """Give the lock back, if it is held."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _content(holder: Path) -> dict[str, str]:
    """Return what a holder said of itself; nothing if it did not come to that."""
    try:
        said: dict[str, str] = json.loads(holder.read_text())
        return said
    except (OSError, ValueError):
        return {}


def _read(holder: Path) -> str:
    return ", ".join(f"{name} {value}" for name, value in _content(holder).items()) or "it has only just begun"
