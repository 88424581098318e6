"""Equal digests mean equal bytes under equal names, however often and wherever they are asked for."""

import os
import shutil

import pytest

from moe_compress.checkpoint.digest import settings_digest, unread_bytes, weight_file_digests, weights_digest
from moe_compress.errors import CheckpointError

SHARD = "model-00001-of-00002.safetensors"


def flip_last_byte(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_a_copy_has_the_same_digests(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    assert weights_digest(source) == weights_digest(copy)
    assert settings_digest(source) == settings_digest(copy)


def test_weights_and_settings_do_not_mix(source):
    weights, settings = weights_digest(source), settings_digest(source)
    (source / "tokenizer.json").write_text("another")
    assert weights_digest(source) == weights
    assert settings_digest(source) != settings
    settings = settings_digest(source)
    flip_last_byte(source / SHARD)
    assert weights_digest(source) != weights
    assert settings_digest(source) == settings


def test_the_config_is_a_setting(source):
    before = settings_digest(source)
    (source / "config.json").write_text("{}")
    assert settings_digest(source) != before


def test_the_cache_answers_for_an_unchanged_file_without_reading_it(source, tmp_path):
    fresh = weights_digest(source, tmp_path / "cache")
    assert fresh == weights_digest(source)
    time = (source / SHARD).stat().st_mtime_ns
    flip_last_byte(source / SHARD)
    os.utime(source / SHARD, ns=(time, time))  # same size and time: only reading would tell
    assert weights_digest(source, tmp_path / "cache") == fresh
    os.utime(source / SHARD, ns=(time, time + 1))
    assert weights_digest(source, tmp_path / "cache") != fresh


def test_what_must_be_read_is_known_without_reading_and_told_as_it_is_read(source, tmp_path):
    sizes = {path.name: path.stat().st_size for path in source.glob("*.safetensors")}
    assert unread_bytes(source, tmp_path / "cache") == sum(sizes.values())
    told = []
    digests = weight_file_digests(source, tmp_path / "cache", told.append)
    assert list(digests) == sorted(sizes) and told == [sizes[name] for name in sorted(sizes)]
    assert unread_bytes(source, tmp_path / "cache") == 0
    flip_last_byte(source / SHARD)
    os.utime(source / SHARD, ns=(1, 1))
    assert unread_bytes(source, tmp_path / "cache") == sizes[SHARD]


def test_a_damaged_cache_entry_is_not_believed(source, tmp_path):
    fresh = weights_digest(source, tmp_path / "cache")
    entries = list((tmp_path / "cache").iterdir())
    assert len(entries) == 2
    for entry in entries:
        entry.write_text("half a dig")
    assert weights_digest(source, tmp_path / "cache") == fresh


def test_a_missing_file_is_an_error(source):
    (source / SHARD).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        weights_digest(source)


def test_a_file_that_grows_while_it_is_read_is_an_error(source, monkeypatch):
    import hashlib

    real = hashlib.file_digest

    def grow(stream, name):
        digest = real(stream, name)
        with (source / SHARD).open("ab") as other:
            other.write(b"more")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", grow)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        weights_digest(source)
