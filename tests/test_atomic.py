from __future__ import annotations

import pytest

from moe_compress.atomic import write_atomically


def test_the_file_is_whole_and_alone(tmp_path):
    write_atomically(tmp_path / "new" / "file.json", b"content")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file.json"]
    assert (tmp_path / "new" / "file.json").read_bytes() == b"content"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
