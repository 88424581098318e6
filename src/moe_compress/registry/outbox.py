"""What a tracking server could not take, kept as ordered files until it can."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from moe_compress.atomic import write_atomically
from moe_compress.errors import RegistryAwayError
from moe_compress.registry.client import without_credentials


class Outbox:
    """A folder of one server's entries; their names sort in the order they were added.

    Runs that begin while the server is away are promised an id of ours. `ids/<promised>` holds the server's own
    once it is known, and is empty until then.
    """

    def __init__(self, folder: Path, server: str) -> None:
        self.server = without_credentials(server)
        self.folder = folder / re.sub(r"[^A-Za-z0-9.]+", "-", self.server)
        self._last = 0

    def add(self, kind: str, content: Mapping[str, Any]) -> None:
        """Keep one entry, on disk when this returns."""
        self._last = max(time.time_ns(), self._last + 1)  # clocks are set back at times
        name = f"{self._last:020d}-{os.getpid()}.json"
        write_atomically(self.folder / name, json.dumps({"kind": kind, **content}, indent=1).encode())

    def entries(self) -> list[Path]:
        """Return the entries' files, oldest first."""
        return sorted(self.folder.glob("[0-9]*.json"))

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Return one entry."""
        entry: dict[str, Any] = json.loads(path.read_text())
        return entry

    def contents(self) -> list[dict[str, Any]]:
        """Return the entries, oldest first, but those that another process sends just now."""
        found = []
        for path in self.entries():
            with suppress(FileNotFoundError):
                found.append(self.read(path))
        return found

    def refuse(self, path: Path, reason: str) -> None:
        """Put an entry aside that the server will never take."""
        entry = {**self.read(path), "refused": reason}
        write_atomically(self.folder / "refused" / path.name, json.dumps(entry, indent=1).encode())
        path.unlink()

    def promise(self, run_id: str) -> None:
        """Note an id of ours whose counterpart is not known yet."""
        write_atomically(self.folder / "ids" / run_id, b"")

    def fulfil(self, run_id: str, real_id: str) -> None:
        """Note what the server calls a promised run."""
        write_atomically(self.folder / "ids" / run_id, real_id.encode())

    def withdraw(self, run_id: str) -> None:
        """Forget a promised run that there will never be."""
        (self.folder / "ids" / run_id).unlink(missing_ok=True)

    def find_id(self, run_id: str) -> str:
        """Return what the server calls a run; empty for a promised one that it does not know yet."""
        path = self.folder / "ids" / run_id
        return path.read_text() if path.is_file() else run_id

    def with_found_ids(self, text: str) -> str:
        """Return text with every promised id that the server knows by now replaced by the server's."""
        for path in self.folder.glob("ids/*"):
            if path.name in text:
                text = text.replace(path.name, path.read_text() or path.name)
        return text

    @contextmanager
    def locked(self, seconds: float) -> Iterator[None]:
        """Keep other processes from sending the same entries meanwhile.

        Args:
            seconds: how long to wait for one that does.

        Raises:
            RegistryAwayError: if it still does.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", timeout=seconds):
                yield
        except Timeout as error:
            raise RegistryAwayError(
                f"another process is sending {self.folder}; try again when it is done"
            ) from error
