"""Where a collection stands after each layer, committed by one rename, so that a killed one goes on from there."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save

from moe_compress.atomic import write_atomically
from moe_compress.collection.hidden import HiddenStates
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import ResourceError

logger = logging.getLogger(__name__)
_PROGRESS = "progress.safetensors"
_LOCK = "lock"


class ResumePoint:
    """The sums so far and the last finished layer's outputs, in a folder of their own or in memory alone.

    A finished collection leaves its sums there, which are small, until `remove_finished` is called.

    Args:
        folder: holds one sub-folder per fingerprint; None keeps all in memory, and nothing can go on.
        fingerprint: a digest of everything the sums depend on.
        keep: whether outputs stay in memory as well as on disk.
    """

    def __init__(self, folder: Path | None, fingerprint: str, keep: bool) -> None:
        self._folder = folder / fingerprint[:16] if folder else None
        self._fingerprint, self._keep = fingerprint, keep
        self._before: HiddenStates | None = None
        self._after: HiddenStates | None = None
        self._lock: FileLock | None = None

    def restore(self, sums: Mapping[str, RoutingSums]) -> int:
        """Fill the sums with what was committed and return the first layer that is still to run.

        Raises:
            ResourceError: if another process is at the same collection.
        """
        if self._folder is None:
            return 0
        self._lock = _lock(self._folder)
        described, state = _read(self._folder / _PROGRESS, self._fingerprint)
        kept = described.get("hidden")
        for path in self._folder.iterdir():  # what a killed run left beside what it committed
            if path.name not in (kept, _LOCK, _PROGRESS if described else None):
                path.unlink()
        if not described:
            return 0
        for number, each in enumerate(sums.values()):
            start = f"{number}/"
            each.restore({n.removeprefix(start): v for n, v in state.items() if n.startswith(start)})
        if kept is not None:
            self._before = HiddenStates.reopen(self._folder / kept, described["places"])
        logger.info("going on from layer %d of an interrupted collection", described["layer"])
        return int(described["layer"])

    @property
    def before(self) -> HiddenStates | None:
        """What the layer before said; None before the first."""
        return self._before

    def start_layer(self, layer: int, is_last: bool) -> HiddenStates | None:
        """Return where a layer's outputs go, None for the last, whose outputs nobody reads."""
        if is_last:
            return None
        self._after = HiddenStates(self._folder / f"hidden-{layer}.bin" if self._folder else None, self._keep)
        return self._after

    def commit(self, layer: int, sums: Mapping[str, RoutingSums]) -> None:
        """Make a layer's end the place to go on from, and drop what the layer before said."""
        places = self._after.finish() if self._after else []
        if self._folder is not None:
            described = {
                "fingerprint": self._fingerprint,
                "layer": layer + 1,
                "hidden": f"hidden-{layer}.bin" if self._after else None,
                "places": places,
            }
            state = {f"{n}/{k}": v for n, each in enumerate(sums.values()) for k, v in each.state().items()}
            write_atomically(self._folder / _PROGRESS, save(state, {"progress": json.dumps(described)}))
        if self._before is not None:
            self._before.delete()
        self._before, self._after = self._after, None

    def abandon(self, error: BaseException) -> None:
        """Give back what an unfinished layer wrote; what was committed stays.

        Raises:
            ResourceError: if the error is a full disk.
        """
        if self._after is not None:
            self._after.delete()
            self._after = None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk of {self._folder} is full; free space there and run the same command again, which goes "
                "on from the last finished layer"
            ) from error

    def close(self) -> None:
        """Let other processes at the folder."""
        if self._lock is not None:
            self._lock.release()


def _lock(folder: Path) -> FileLock:
    """Return the lock of a resume point's folder, held."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResourceError(
            f"another process is at the same collection in {folder}; wait for it, or end it and run again"
        ) from error
    return lock


def _read(path: Path, fingerprint: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what was committed and its sums, both empty if nothing was, or it was of something else."""
    if not path.is_file():
        return {}, {}
    with safe_open(path, framework="pt") as file:
        described = json.loads(file.metadata()["progress"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return (described, state) if described["fingerprint"] == fingerprint else ({}, {})


def remove_finished(folder: Path) -> None:
    """Remove the resume points of collections whose statistics are saved: those with every layer done."""
    for path in folder.glob(f"*/{_PROGRESS}"):
        with suppress(FileNotFoundError):  # every rank tidies up
            with safe_open(path, framework="pt") as file:
                described: dict[str, Any] = json.loads(file.metadata()["progress"])
            if described["hidden"] is None:
                shutil.rmtree(path.parent)
