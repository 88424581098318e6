"""A byte that is not what it should be keeps a checkpoint from being published, whoever changed it and when."""

import os
import threading

import pytest
from tests.checkpoint.conftest import make_map, make_plan

from moe_compress.checkpoint import proof
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.pieces import place_pieces
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import CheckpointError
from moe_compress.types import ExpertGroup

SHARD = "model-00002-of-00002.safetensors"
MERGED = (ExpertGroup((0, 2), (0.5, 0.5)), 1)


def planned(source, *groups, **options):
    return plan_rewrite(read_index(source), make_map(), make_plan(*groups), **options)


def refuse(rewrite, destination, words, progress=None):
    before = sorted(destination.parent.iterdir())
    with pytest.raises(CheckpointError, match=words):
        write_checkpoint(rewrite, destination, progress)
    assert sorted(destination.parent.iterdir()) == before


def flip(path, place):
    with path.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([byte ^ 1]))


def damage_at(moment, folder, number, place):
    """Return a progress callback that flips a byte of the file written as `number`, at a moment in [0, 1]."""
    done_before = []

    def damage(done, total):
        files = sorted(folder.glob(".*.partial-*/model*.safetensors"))
        if done >= moment * total and not done_before and len(files) > number:
            flip(files[number], place if place >= 0 else files[number].stat().st_size + place)
            done_before.append(done)

    return damage


@pytest.mark.parametrize("has_kernel_copy", [True, False])
def test_a_flipped_byte_anywhere(source, tmp_path, monkeypatch, has_kernel_copy):
    if not has_kernel_copy:
        monkeypatch.delattr(os, "copy_file_range", raising=False)
        monkeypatch.delattr(os, "sendfile", raising=False)
    rewrite = planned(source, *MERGED)
    for place in range(0, rewrite.num_bytes, 7):
        refuse(rewrite, tmp_path / "new", "as written differs from", damage_at(1, tmp_path, 0, place))


@pytest.mark.parametrize("number", [0, 1, -1])
def test_a_file_that_was_proven_is_proven_again_if_it_was_touched(source, tmp_path, number):
    rewrite = planned(source, *MERGED, max_shard_bytes=100)
    refuse(rewrite, tmp_path / "new", "as written differs from", damage_at(1, tmp_path, number, -1))


def test_a_file_that_was_only_touched_is_accepted(source, tmp_path):
    def touch(done, total):
        if done == total:
            for file in tmp_path.glob(".new.partial-*/model*"):
                os.utime(file, ns=(1, 1))

    write_checkpoint(planned(source, *MERGED, max_shard_bytes=100), tmp_path / "new", touch)
    assert (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize("name", ["copy_file_range", "sendfile"])
def test_a_kernel_that_copies_wrongly(source, tmp_path, monkeypatch, name):
    real = getattr(os, name)
    if name == "sendfile":
        monkeypatch.delattr(os, "copy_file_range", raising=False)

    def copy_wrongly(first, second, *rest, **options):
        copied = real(first, second, *rest, **options)
        written = second if name == "copy_file_range" else first
        os.pwrite(written, b"\x5a", os.lseek(written, 0, os.SEEK_CUR) - 1)
        return copied

    monkeypatch.setattr(os, name, copy_wrongly)
    refuse(
        planned(source, 0, 3), tmp_path / "new", r"model\.safetensors as written differs from byte \d+ of model-0"
    )


def test_a_source_that_changes_after_it_was_copied(source, tmp_path):
    rewrite = planned(source, 0, 1, 2, 3)

    def change(done, total):
        if done == total:
            flip(source / SHARD, -1 + (source / SHARD).stat().st_size)

    refuse(rewrite, tmp_path / "new", "as written differs from", change)


def test_a_source_that_changes_between_planning_and_copying(source, tmp_path):
    rewrite = planned(source, 0)
    flip(source / SHARD, -1 + (source / SHARD).stat().st_size)  # in an expert that is dropped
    refuse(rewrite, tmp_path / "new", "changed while it was read; run again when nothing writes it")


def test_a_source_that_is_replaced_while_it_is_copied(source, tmp_path):
    rewrite = planned(source, *MERGED)
    content = (source / SHARD).read_bytes()

    def replace(done, total):
        (source / "other").write_bytes(content)
        os.replace(source / "other", source / SHARD)

    refuse(rewrite, tmp_path / "new", "changed while it was read", replace)


def test_long_ranges_are_cut_and_short_ones_put_together(source, monkeypatch):
    (shard,) = planned(source, 0, 3).shards
    expected = list(place_pieces(shard))
    for size in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(proof, "_BATCH_BYTES", size)
        batches = list(proof._batches(shard))
        parts = [part for batch in batches for part in batch]
        assert all(part.piece.num_bytes <= size for part in parts)
        assert all(sum(part.piece.num_bytes for part in batch[:-1]) < size for batch in batches)
        start = len(shard.header)
        for part in parts:
            assert part.start == start
            start += part.piece.num_bytes
        assert start == shard.num_bytes
        bytes_of = [
            (placed.piece.file, place)
            for placed in expected
            for place in range(placed.piece.start, placed.piece.start + placed.piece.num_bytes)
        ]
        assert bytes_of == [
            (part.piece.file, place)
            for part in parts
            for place in range(part.piece.start, part.piece.start + part.piece.num_bytes)
        ]


def test_no_thread_is_left_behind(source, tmp_path):
    before = threading.active_count()
    write_checkpoint(planned(source, *MERGED), tmp_path / "new")
    refuse(planned(source, *MERGED), tmp_path / "other", "differs from", damage_at(1, tmp_path, 0, 9))
    assert threading.active_count() == before
