"""A checkpoint's checksums, kept beside it in the format of `sha256sum -c`, and what they tell later."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from moe_compress.atomic import write_atomically
from moe_compress.checkpoint.digest import digest_file
from moe_compress.checkpoint.files import CHECKSUMS, CONFIG, TEMPLATES, list_companions, resolve_file
from moe_compress.errors import CheckpointError

_LINE = re.compile(rf"(?P<digest>[0-9a-f]{{64}})  (?P<name>({TEMPLATES}/)?[^/\\]+)")


def write_checksums(folder: Path, files: Mapping[str, str]) -> Path:
    """Write name -> sha256 of a checkpoint's files beside them, and return the file; the same writes nothing."""
    content = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode()
    path = folder / CHECKSUMS
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return path


def read_checksums(folder: Path) -> dict[str, str]:
    """Return name -> sha256 as they were written.

    Raises:
        CheckpointError: if the file is missing or not of this form.
    """
    path = resolve_file(folder, CHECKSUMS)
    lines = [_LINE.fullmatch(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    if not lines or None in lines:
        raise CheckpointError(f"{path} has a line that is no checksum; fetch the checkpoint again")
    return {line["name"]: line["digest"] for line in lines if line is not None}


def find_damage(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Return name -> what is wrong with it, of the files of a checkpoint; every file is read in full.

    Args:
        folder: the checkpoint.
        files: name -> sha256 as it should be.
    """
    damage = {}
    for name, digest in sorted(files.items()):
        try:
            found = digest_file(resolve_file(folder, name))
        except CheckpointError as error:
            damage[name] = str(error)
        else:
            if found != digest:
                damage[name] = f"its bytes changed: sha256 {found[:12]}, registered {digest[:12]}"
    present = {CONFIG, *list_companions(folder), *(path.name for path in folder.glob("*.safetensors"))}
    return damage | dict.fromkeys(sorted(present - files.keys()), "was not there when it was registered")
