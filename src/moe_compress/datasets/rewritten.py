"""A compressed checkpoint under its run's key: streamed into place, where no released one is ever overwritten."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moe_compress.checkpoint.checksums import read_checksums
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.datasets.checkpoint import refer_to
from moe_compress.datasets.keyed import KeyedDataset
from moe_compress.errors import CheckpointError
from moe_compress.registry.mlmodel import FILE_NAME
from moe_compress.types import CheckpointReference

logger = logging.getLogger(__name__)


class KeyedCheckpointDataset(KeyedDataset):
    """A compressed checkpoint under its run's key; saving streams it and publishes it by one rename.

    Args:
        path: where digests of unchanged files are remembered.
        place: where it lives; see `KeyedDataset`.
    """

    def __init__(self, path: str, **place: Any):
        super().__init__(**place)
        self._digests = Path(path)

    @property
    def path(self) -> Path:
        """Where the newest checkpoint of this key lives; see `put`.

        Raises:
            DatasetError: outside a run, when no key is bound.
        """
        return newest(super().path)

    def save(self, data: CheckpointRewrite | CheckpointReference) -> None:
        """Stream the rewrite into place; a checkpoint that is there already stays where the new one is the same.

        A reference stands for the checkpoint that is already in this place. Both fit on the disk for a while, or
        nothing is written.

        Raises:
            CheckpointError: if the disk is too small or the written files are not what was planned.
        """
        if isinstance(data, CheckpointReference):
            assert data.path == self.path
            return
        with tqdm(total=data.num_bytes, unit="B", unit_scale=True, desc="rewrite") as bar:
            put(super().path, lambda place: write_checkpoint(data, place, lambda *done: show(bar, *done)))

    def load(self) -> CheckpointReference:
        """Return the folder with its digests."""
        return refer_to(self.path, self._digests)


def put(first: Path, write: Callable[[Path], None]) -> None:
    """Put a checkpoint in its place; one that is there goes once the new one is whole, and only if they differ.

    One that was released has its records beside its weights (MLmodel, checksums, card), and its version may be in
    use: no run changes its bytes. Where others come out, on another device for one, they go to a folder numbered 2,
    3, ... beside it, before any gate has judged them.

    Args:
        first: the place of the first checkpoint under this key.
        write: writes the checkpoint to a folder that is not there yet, whole or not at all.
    """
    path = newest(first)
    new, aside = first.with_name(f".{first.name}.new"), path.with_name(f".{path.name}.replaced")
    if aside.exists() and not path.exists():  # a run was killed between the two renames
        aside.rename(path)
    for leftover in (new, aside):
        shutil.rmtree(leftover, ignore_errors=True)
    if not path.exists():
        write(path)
        return
    write(new)
    written = refer_to(new, None).files
    if holds(path, written):
        logger.info("%s holds the same bytes already and stays", path)
        shutil.rmtree(new)
    elif is_released_as_another(path, written):
        place = first.parent / str(max(numbers(first), default=1) + 1) / first.name
        place.parent.mkdir()
        new.rename(place)
        used = sum(file.stat().st_size for file in path.iterdir()) / 1e9
        logger.warning("%s was released with other bytes and stays (%.1f GB); these are in %s", path, used, place)
    else:
        path.rename(aside)
        new.rename(path)
        shutil.rmtree(aside, ignore_errors=True)


def newest(first: Path) -> Path:
    """Return the place of the newest checkpoint under a key, given that of the first."""
    return first.parent / str(max(found)) / first.name if (found := numbers(first)) else first


def numbers(first: Path) -> list[int]:
    """Return the numbers of the folders that later checkpoints under a key were put in."""
    return [int(folder.name) for folder in first.parent.glob("*") if folder.name.isdecimal()]


def holds(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a checkpoint folder has these weights and settings, name -> sha256; all of both is read."""
    try:
        return refer_to(folder, None).files == files
    except (CheckpointError, OSError):  # a damaged one is to be replaced
        return False


def is_released_as_another(folder: Path, files: Mapping[str, str]) -> bool:
    """Whether a checkpoint was released, and not as these weights and settings, whatever it may hold by now."""
    if not (folder / FILE_NAME).is_file():
        return False
    try:
        return read_checksums(folder) != files
    except CheckpointError:  # what it was released as is not known
        return True


def show(bar: tqdm[Any], done: int, total: int) -> None:
    """Move a progress bar to `done` of `total` bytes."""
    bar.total = total
    bar.update(done - bar.n)
