"""What a checkpoint is: one sha256 for its weights, one for its settings, remembered per unchanged file."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.checkpoint.files import CONFIG, list_companions, resolve_file
from moe_compress.checkpoint.index import list_weight_files
from moe_compress.errors import CheckpointError

_SHA256 = re.compile(r"[0-9a-f]{64}")


def weights_digest(folder: Path, cache_dir: Path | None = None) -> str:
    """Return the sha256 of a checkpoint's weights: the names and bytes of its safetensors files.

    Args:
        folder: the checkpoint.
        cache_dir: where digests of files are remembered by real path, size and modification time, if anywhere.

    Raises:
        CheckpointError: if a file is missing, or changes while it is read.
    """
    return _digest_files(folder, list_weight_files(folder), cache_dir)


def settings_digest(folder: Path) -> str:
    """Return the sha256 of everything else that decides what a model says: config, tokenizer, templates.

    Raises:
        CheckpointError: if the config is missing.
    """
    return _digest_files(folder, (CONFIG, *list_companions(folder)), None)


def _digest_files(folder: Path, names: Iterable[str], cache_dir: Path | None) -> str:
    total = hashlib.sha256()
    for name in sorted(names):
        total.update(f"{len(name.encode())}:{name}".encode())
        total.update(bytes.fromhex(_digest_file(resolve_file(folder, name), cache_dir)))
    return total.hexdigest()


def _digest_file(path: Path, cache_dir: Path | None) -> str:
    """Return the sha256 of one file, from the cache if the file has not changed since."""
    with path.open("rb") as stream:
        before = os.fstat(stream.fileno())
        key = f"{os.path.realpath(path)}\0{before.st_size}\0{before.st_mtime_ns}"
        entry = cache_dir / hashlib.sha256(key.encode()).hexdigest() if cache_dir else None
        if entry and entry.is_file() and _SHA256.fullmatch(known := entry.read_text()):
            return known
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        after = os.fstat(stream.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError(f"{path} changed while it was read; run again when its download or copy is done")
    if entry:
        write_atomically(entry, digest.encode())
    return digest
