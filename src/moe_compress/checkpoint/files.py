"""Which files of a checkpoint folder may be read, and which travel along with its weights."""

import os
import re
from contextlib import ExitStack
from pathlib import Path

from moe_compress.errors import CheckpointError

CONFIG = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CHECKSUMS = "checksums.sha256"
TEMPLATES = "additional_chat_templates"
"""The one folder of a checkpoint that belongs to it: its tokenizer's chat templates beside the main one."""

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pkl")
_ARCHIVES = (".npz", ".tar")
_WEIGHT_INDEX = re.compile(rf"({'|'.join(map(re.escape, _WEIGHTS))})\.index.*\.json$")
_TEMPLATE = re.compile(rf"{TEMPLATES}/[^/\\]+\.jinja")
_RECORDS = {
    "mlmodel",
    "conda.yaml",
    "python_env.yaml",
    "requirements.txt",
    "registered_model_meta",
    "params.json",
    CHECKSUMS,
}


Stamp = tuple[int, int, int]
"""What changes when a file is replaced or written: inode, size, modification time in nanoseconds."""

_MAX_NAME = 255  # bytes, as file systems have it
_MAX_OPEN = 64  # of the files a process may have open at once


def resolve_file(folder: Path, name: str) -> Path:
    """Return the path of one file of a checkpoint folder, if it is safe to open.

    A link is followed only where the hub's cache puts one: from `snapshots/<revision>/` to its `blobs/`.

    Args:
        folder: the checkpoint.
        name: a plain name, or that of a further chat template with its folder.

    Raises:
        CheckpointError: if the name leaves the folder, the file is missing, or a link leads elsewhere.
    """
    plain = name.removeprefix(f"{TEMPLATES}/") if _TEMPLATE.fullmatch(name) else name
    is_plain = plain.isprintable() and not {"/", "\\"} & set(plain) and plain not in ("", ".", "..")
    if not is_plain or len(plain.encode()) > _MAX_NAME:
        raise CheckpointError(
            f"{folder} names a file {name[:_MAX_NAME]!r}, which is not a plain name inside the folder; "
            "do not use this checkpoint"
        )
    path = folder / name
    for place in (folder / TEMPLATES, path) if plain != name else (path,):
        if place.is_symlink() and not _is_cache_link(place, folder):
            raise CheckpointError(
                f"{place} is a link to {os.readlink(place)}, outside the checkpoint; copy the file into the folder"
            )
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again")
    return path


def _is_cache_link(path: Path, folder: Path) -> bool:
    """Whether a link in a hub snapshot, the folder, leads to a blob of the same repository."""
    target, revision = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    return revision.parent.name == "snapshots" and target.parent == revision.parent.parent / "blobs"


def stamp_file(path: Path) -> Stamp:
    """Return what tells whether a file was changed since."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


class SourceFiles(ExitStack):
    """Files of a checkpoint folder, opened to read when first asked for and closed together."""

    def __init__(self, folder: Path):
        super().__init__()
        self._folder = folder
        self._opened: dict[str, int] = {}

    def descriptor(self, name: str) -> int:
        """Return an open descriptor of a file, good until the next one is asked for.

        Raises:
            CheckpointError: if the file is missing or not safe to open.
        """
        if name not in self._opened:
            if len(self._opened) == _MAX_OPEN:
                self.close()
                self._opened.clear()
            stream = self.enter_context(resolve_file(self._folder, name).open("rb", buffering=0))
            self._opened[name] = stream.fileno()
        return self._opened[name]


def list_companions(folder: Path) -> tuple[str, ...]:
    """Return the names of the files a rewrite carries over unchanged, sorted.

    Tokenizer, generation config, templates and the like; not weights, `config.json`, hidden files, nor what
    tells about the old model only (a README, a registry's records, training logs, the importance of its weights
    to llama.cpp, the sizes of Mistral's own format).

    Raises:
        CheckpointError: if one is a link out of the checkpoint.
    """
    entries = (entry.name for entry in os.scandir(folder) if not entry.is_dir())
    templates = (f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    names = sorted(name for name in (*entries, *templates) if travels(name))
    for name in names:
        resolve_file(folder, name)
    return tuple(names)


def travels(name: str) -> bool:
    """Return whether a file of this name is carried over by a rewrite; see `list_companions`."""
    if "/" in name:
        return _TEMPLATE.fullmatch(name) is not None
    lower = name.lower()
    is_weight = lower.endswith((*_WEIGHTS, *_ARCHIVES)) or _WEIGHT_INDEX.search(lower) is not None
    is_record = lower in _RECORDS or lower.startswith((".", "readme", "imatrix", "events.out."))
    return not (is_weight or is_record or lower == CONFIG)
