"""Where a collection stands after each layer, committed by one rename, so that a killed one goes on from there.

Each finished layer is one small file with its sums; the last one also says where that layer's outputs lie. Another
thread writes them while the next layer computes, one after the other, so that on disk is always some layer's end.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save

from moe_compress.atomic import write_atomically
from moe_compress.collection.hidden import HiddenStates
from moe_compress.collection.replay import is_out_of_memory
from moe_compress.collection.sums import RoutingSums
from moe_compress.errors import ResourceError, StatisticsError

logger = logging.getLogger(__name__)
_LOCK = "lock"
_CLAIMED = ".finished"


class ResumePoint:
    """Each finished layer's sums and the last one's outputs, in a folder of their own or in memory alone.

    With a folder a finished layer's sums leave memory, until `finish` brings those of all layers back. They stay
    in the folder, being small, until `remove_finished` is called.

    Args:
        folder: holds one sub-folder per fingerprint; None keeps all in memory, and nothing can go on.
        fingerprint: a digest of everything the sums depend on.
        keep: whether outputs stay in memory as well as on disk.
    """

    def __init__(self, folder: Path | None, fingerprint: str, keep: bool) -> None:
        self._folder = _place_of(folder, fingerprint) if folder else None
        self._fingerprint, self._keep = fingerprint, keep
        self._before: HiddenStates | None = None
        self._after: HiddenStates | None = None
        self._lock: FileLock | None = None
        self._writer = ThreadPoolExecutor(1, "commit-layer") if folder else None
        self._commit: Future[None] | None = None

    def restore(self) -> int:
        """Return the first layer that is still to run, with the outputs of the one before it at hand.

        Raises:
            ResourceError: if another process is at the same collection.
        """
        if self._folder is None:
            return 0
        self._lock = _lock(self._folder)
        layer, described = 0, {"hidden": None}
        while (path := _path_of(self._folder, layer)).is_file():
            if (found := _describe(path))["fingerprint"] != self._fingerprint:
                layer, described = 0, {"hidden": None}
                break
            layer, described = layer + 1, found
        kept = {_LOCK, described["hidden"], *(_path_of(self._folder, number).name for number in range(layer))}
        for path in self._folder.iterdir():  # what a killed run left beside what it committed
            if path.name not in kept:
                path.unlink()
        if described["hidden"] is not None:
            self._before = HiddenStates.reopen(self._folder / described["hidden"], described["places"])
        if layer:
            logger.info("going on from layer %d of an interrupted collection", layer)
        return layer

    @property
    def before(self) -> HiddenStates | None:
        """What the layer before said; None before the first."""
        return self._before

    def start_layer(self, layer: int, is_last: bool) -> HiddenStates | None:
        """Return where a layer's outputs go, None for the last, whose outputs nobody reads."""
        if is_last:
            return None
        path = self._folder / f"hidden-{layer}.bin" if self._folder else None
        self._after = HiddenStates(path, self._keep, self._writer)
        return self._after

    def commit(self, layer: int, sums: Mapping[str, RoutingSums]) -> None:
        """Make a layer's end the place to go on from, and drop what the layer before said.

        Raises:
            OSError: if the disk is full, for this layer or the one before.
        """
        if self._writer is not None:
            state = {f"{n}/{k}": v for n, each in enumerate(sums.values()) for k, v in each.take().items()}
            self._wait()
            self._commit = self._writer.submit(self._write, layer, state, self._before, self._after)
        elif self._before is not None:
            self._before.delete()
        self._before, self._after = self._after, None

    def finish(self, sums: Mapping[str, RoutingSums]) -> None:
        """Wait until the last layer is on disk, and fill the sums with what all layers committed."""
        if self._folder is None:
            return
        self._wait()
        for path in sorted(_layers_of(self._folder)):
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            for number, each in enumerate(sums.values()):
                start = f"{number}/"
                each.restore({n.removeprefix(start): v for n, v in state.items() if n.startswith(start)})

    def abandon(self, error: BaseException) -> None:
        """Give back what an unfinished layer wrote; what was committed stays.

        Raises:
            ResourceError: if the error is a full disk or memory.
            StatisticsError: the same, saying where the collection stands.
        """
        if self._writer is not None:
            self._writer.shutdown()  # a finished layer that is being written is not lost
        if self._after is not None:
            self._after.delete()
            self._after = None
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"the disk of {self._folder} is full; free space there and run the same command again, which goes "
                "on from the last finished layer"
            ) from error
        if is_out_of_memory(error):
            raise ResourceError(
                "memory ran out while a layer was read or run; free some and run the same command again, which "
                "goes on from the last finished layer, or lower collect.batch_size, which starts anew"
            ) from error
        if isinstance(error, StatisticsError) and self._folder is not None:
            raise StatisticsError(
                f"{error}; finished layers are kept, and the same command on the same weights goes on from this one"
            ) from error

    def close(self) -> None:
        """Let other processes at the folder, `remove_finished` among them."""
        if self._writer is not None:
            self._writer.shutdown()
        if self._before is not None:
            self._before.close()
        if self._lock is not None:
            self._lock.release()

    def _wait(self) -> None:
        if self._commit is not None:
            self._commit.result()
            self._commit = None

    def _write(
        self,
        layer: int,
        state: dict[str, torch.Tensor],
        before: HiddenStates | None,
        after: HiddenStates | None,
    ) -> None:
        assert self._folder is not None
        described = {
            "fingerprint": self._fingerprint,
            "hidden": f"hidden-{layer}.bin" if after else None,
            "places": after.finish() if after else [],
        }
        write_atomically(_path_of(self._folder, layer), save(state, {"layer": json.dumps(described)}))
        if before is not None:
            before.delete()


def _place_of(folder: Path, fingerprint: str) -> Path:
    return folder / fingerprint[:16]


def _path_of(folder: Path, layer: int) -> Path:
    return folder / f"layer-{layer}.safetensors"


def _describe(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["layer"])  # type: ignore[no-any-return]


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


def bytes_held(folder: Path | None, fingerprint: str) -> int:
    """Return the bytes that an interrupted collection has on disk, and uses again or gives back when it goes on."""
    if folder is None:
        return 0
    with suppress(FileNotFoundError):  # nobody began it, or another process has just ended it
        return sum(path.stat().st_size for path in _place_of(folder, fingerprint).iterdir())
    return 0


def remove_finished(folder: Path) -> None:
    """Remove the resume points of collections whose sums were read: those with every layer done that none holds.

    All ranks tidy up at one moment, and so do shards beside them: each point is removed by the one that claims it,
    and what a process was killed over is removed by the next.
    """
    for point in list(folder.glob("[!.]*")):
        # What another process claimed vanishes at any moment, and torch has an error of its own for that.
        with suppress(OSError, RuntimeError):
            if _is_finished(point):
                _claim(point, _is_finished)
    for claimed in list(folder.glob(f".*{_CLAIMED}")):
        shutil.rmtree(claimed, ignore_errors=True)


def remove_stale(folder: Path, current: Path) -> None:
    """Remove the resume points that code of another version left, which nothing goes on from; what is held stays.

    Args:
        folder: holds the resume points of all versions, under whatever names.
        current: the folder in it that holds those of the code that runs, and is left alone.
    """
    for place, _, files in list(os.walk(folder)):
        point = Path(place)
        if current not in point.parents and (_LOCK in files or point.name.endswith(_CLAIMED)):
            with suppress(OSError):
                size = sum(path.stat().st_size for path in point.iterdir()) / 1e9
                _claim(point, lambda _: True)
                logger.info("removed %s (%.1f GB), a collection that other code left unfinished", point, size)
    for version in list(folder.iterdir()):
        if version != current:
            with suppress(OSError):  # what is held is in it
                version.rmdir()


def _is_finished(point: Path) -> bool:
    return any(_describe(path)["hidden"] is None for path in _layers_of(point))


def _claim(point: Path, is_over: Callable[[Path], bool]) -> None:
    """Take a point away that is over, so that no process goes on from half of it.

    Raises:
        OSError: if a process holds it, or another was faster.
    """
    with FileLock(point / _LOCK, timeout=0):
        # Where another was faster, the lock alone is there, because locking made the folder anew.
        if is_over(point) or not _layers_of(point):
            claimed = point.rename(point.with_name(f".{point.name}.{uuid.uuid4().hex[:8]}{_CLAIMED}"))
            # With the lock held: who waits for it learns that it is gone.
            shutil.rmtree(claimed, ignore_errors=True)


def _layers_of(point: Path) -> list[Path]:
    return list(point.glob("layer-*.safetensors"))
