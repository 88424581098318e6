"""Checksums say which file changed, went or came; `sha256sum -c` reads them too."""

from __future__ import annotations

import hashlib
import subprocess

import pytest

from moe_compress.checkpoint.checksums import find_damage, read_checksums, write_checksums
from moe_compress.errors import CheckpointError

TEMPLATE = "additional_chat_templates/tool_use.jinja"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "additional_chat_templates").mkdir()
    for name in (TEMPLATE, "config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def files(folder):
    names = (TEMPLATE, "config.json", "model.safetensors")
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_what_is_written_is_read_and_twice_writes_nothing(folder, files):
    path = write_checksums(folder, files)
    stamp = path.stat().st_mtime_ns
    assert write_checksums(folder, files).stat().st_mtime_ns == stamp
    assert read_checksums(folder) == files and find_damage(folder, files) == {}
    subprocess.run(["sha256sum", "--check", "--quiet", path.name], cwd=folder, check=True)


def test_every_kind_of_damage_is_named(folder, files):
    write_checksums(folder, files)
    (folder / "config.json").write_text("config.jsoN")
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").write_text("new")
    (folder / TEMPLATE).write_text("other")
    (folder / "additional_chat_templates" / "rag.jinja").write_text("new")
    (folder / "README.md").write_text("the card is not held against anything")
    damage = find_damage(folder, files)
    new = ["additional_chat_templates/rag.jinja", "tokenizer.json"]
    assert list(damage) == [TEMPLATE, "config.json", "model.safetensors", *new]
    assert "bytes changed" in damage["config.json"] and "bytes changed" in damage[TEMPLATE]
    assert "is missing" in damage["model.safetensors"]
    assert all("was not there" in damage[name] for name in new)


@pytest.mark.parametrize(
    "content", ["", "nonsense\n", f"{'a' * 64}  ../../etc/passwd\n", f"{'a' * 64}  onnx/model.json\n"]
)
def test_a_file_that_is_no_list_of_checksums(folder, content):
    (folder / "checksums.sha256").write_text(content)
    with pytest.raises(CheckpointError, match="no checksum"):
        read_checksums(folder)
