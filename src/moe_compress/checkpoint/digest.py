"""What a checkpoint is: one sha256 for its weights, one for its settings, remembered per unchanged file."""

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.checkpoint.files import CONFIG, list_companions, resolve_file
from moe_compress.checkpoint.index import list_weight_files
from moe_compress.errors import CheckpointError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NUM_READERS = 4
"""Files read at once: one thread digests about as fast as one disk reads, and checkpoints lie on several."""


def weights_digest(folder: Path, cache_dir: Path | None = None) -> str:
    """Return the sha256 of a checkpoint's weights: the names and bytes of its safetensors files.

    Args:
        folder: the checkpoint.
        cache_dir: where digests of files are remembered by real path, size and modification time, if anywhere.

    Raises:
        CheckpointError: if a file is missing, or changes while it is read.
    """
    return join_digests(weight_file_digests(folder, cache_dir))


def settings_digest(folder: Path) -> str:
    """Return the sha256 of everything else that decides what a model says: config, tokenizer, templates.

    Raises:
        CheckpointError: if the config is missing.
    """
    return join_digests(settings_file_digests(folder))


def weight_file_digests(
    folder: Path, cache_dir: Path | None = None, progress: Callable[[int], object] | None = None
) -> dict[str, str]:
    """Return name -> sha256 of a checkpoint's safetensors files; see `weights_digest`.

    Args:
        folder: the checkpoint.
        cache_dir: where digests of files are remembered, if anywhere.
        progress: told the bytes of each file that is done.
    """
    paths, digests = weight_paths(folder), {}
    with ThreadPoolExecutor(_NUM_READERS, "digest") as readers:
        try:
            tasks = {name: readers.submit(digest_file, path, cache_dir) for name, path in paths.items()}
            for name, task in tasks.items():
                digests[name] = task.result()
                if progress:
                    progress(paths[name].stat().st_size)
        finally:
            readers.shutdown(cancel_futures=True)
    return digests


def weight_paths(folder: Path) -> dict[str, Path]:
    """Return name -> path of a checkpoint's safetensors files.

    Raises:
        CheckpointError: if one is missing, or a link leads elsewhere.
    """
    return {name: resolve_file(folder, name) for name in list_weight_files(folder)}


def unread_bytes(folder: Path, cache_dir: Path) -> int:
    """Return the bytes of a checkpoint's weight files whose digests are not remembered."""
    found = ((path, path.stat()) for path in weight_paths(folder).values())
    return sum(status.st_size for path, status in found if _remembered(_entry(cache_dir, path, status)) is None)


def settings_file_digests(folder: Path) -> dict[str, str]:
    """Return name -> sha256 of a checkpoint's config, tokenizer and templates; see `settings_digest`."""
    names = (CONFIG, *list_companions(folder))
    return {name: digest_file(resolve_file(folder, name)) for name in names}


def join_digests(files: Mapping[str, str]) -> str:
    """Return one sha256 of several files' names and digests."""
    total = hashlib.sha256()
    for name in sorted(files):
        total.update(f"{len(name.encode())}:{name}".encode())
        total.update(bytes.fromhex(files[name]))
    return total.hexdigest()


def digest_file(path: Path, cache_dir: Path | None = None) -> str:
    """Return the sha256 of one file, from the cache if the file has not changed since."""
    with path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        entry = _entry(cache_dir, path, before) if cache_dir else None
        if entry and (known := _remembered(entry)):
            return known
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{path} changed while it was read; run again when its download or copy is done")
    if entry:
        write_atomically(entry, digest.encode())
    return digest


def _entry(cache_dir: Path, path: Path, status: os.stat_result) -> Path:
    """Return where a file's digest is remembered: under its real path, size and modification time."""
    key = f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
    return cache_dir / hashlib.sha256(key.encode()).hexdigest()


def _remembered(entry: Path) -> str | None:
    """Return the digest an entry holds, None if it holds none."""
    return entry.read_text() if entry.is_file() and _SHA256.fullmatch(entry.read_text()) else None
