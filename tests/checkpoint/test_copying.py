"""Every way of copying gives the same bytes, and an error when the source has fewer."""

import errno
import os

import pytest

from moe_compress.checkpoint import copying
from moe_compress.checkpoint.copying import copy_bytes, join_ranges, read_bytes, write_bytes
from moe_compress.checkpoint.jobs import ByteRange, Mean
from moe_compress.errors import CheckpointError

CONTENT = bytes(range(256)) * 40


def refusing(*args, **options):
    raise OSError(errno.EXDEV, "not between these")


@pytest.fixture
def files(tmp_path):
    """Open descriptors of a file to read, with `CONTENT`, and of one to write, with four bytes."""
    (tmp_path / "old").write_bytes(CONTENT)
    with (tmp_path / "old").open("rb") as source, (tmp_path / "new").open("w+b", buffering=0) as destination:
        destination.write(b"head")
        yield source.fileno(), destination.fileno()


@pytest.mark.parametrize("missing", [(), ("copy_file_range",), ("copy_file_range", "sendfile")])
@pytest.mark.parametrize("how", ["absent", "refuses", "does nothing"])
def test_all_ways_append_the_same_bytes(files, monkeypatch, missing, how):
    for name in missing:
        if how == "absent":
            monkeypatch.delattr(os, name, raising=False)
        else:
            monkeypatch.setattr(os, name, refusing if how == "refuses" else lambda *args, **options: 0)
    monkeypatch.setattr(copying, "_BUFFER_BYTES", 999)
    monkeypatch.setattr(copying, "_KERNEL_BYTES", 3001)  # many turns of the loop
    source, destination = files
    copy_bytes(source, 100, 9_000, destination, "old")
    copy_bytes(source, 3, 5, destination, "old")
    assert os.pread(destination, 20_000, 0) == b"head" + CONTENT[100:9_100] + CONTENT[3:8]


def test_the_kernel_copies_where_it_can(files, monkeypatch):
    monkeypatch.setattr(copying, "read_bytes", None)  # the buffered way would fail
    copy_bytes(files[0], 0, len(CONTENT), files[1], "old")
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    copy_bytes(files[0], 0, len(CONTENT), files[1], "old")
    assert os.pread(files[1], 30_000, 4) == 2 * CONTENT


def test_a_source_that_ends_early(files):
    with pytest.raises(CheckpointError, match="old ends at byte 10240, 7 bytes early"):
        copy_bytes(files[0], 10_000, 247, files[1], "old")
    with pytest.raises(CheckpointError, match="old ends at byte 10240, 1 bytes early"):
        read_bytes(files[0], 10_239, 2, "old")


def test_a_disk_that_is_full_is_not_taken_for_a_kernel_that_cannot(files, monkeypatch):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("copy_file_range", "sendfile", "write"):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space left"):
        copy_bytes(files[0], 0, 10, files[1], "old")


def test_short_writes_are_continued(files, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, view: real(descriptor, view[:3]))
    write_bytes(files[1], b"0123456789")
    assert os.pread(files[1], 20, 4) == b"0123456789"


def test_neighbours_in_one_file_are_joined_and_nothing_else():
    a, b, c = ByteRange("f", 0, 5), ByteRange("f", 5, 3), ByteRange("f", 8, 1)
    mean = Mean((a, b), (0.5, 0.5))
    other = ByteRange("g", 9, 1)
    assert list(join_ranges([])) == []
    assert list(join_ranges([a, b, c])) == [ByteRange("f", 0, 9)]
    assert list(join_ranges([b, a, c, other, mean, a, b])) == [b, a, c, other, mean, ByteRange("f", 0, 8)]
