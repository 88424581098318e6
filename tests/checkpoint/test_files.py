"""Links are followed as the hub's cache lays them, and nowhere else."""

import os

import pytest
from tests.checkpoint.conftest import make_tensors

from moe_compress.checkpoint.files import SourceFiles, list_companions, resolve_file, stamp_file
from moe_compress.checkpoint.index import read_index
from moe_compress.errors import CheckpointError


def as_cache(source, root):
    """Lay a folder out as the hub's cache does: snapshots of links into blobs."""
    snapshot, blobs = root / "models--a--b" / "snapshots" / "0123", root / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(file for file in sorted(source.iterdir()) if file.is_file()):
        file.rename(blobs / f"blob{number}")
        (snapshot / file.name).symlink_to(f"../../blobs/blob{number}")
    return snapshot


def test_the_cache_of_the_hub_is_read(source, tmp_path):
    snapshot = as_cache(source, tmp_path / "hub")
    assert read_index(snapshot).shapes.keys() == make_tensors().keys()
    (tmp_path / "alias").symlink_to(snapshot)
    assert read_index(tmp_path / "alias").shapes.keys() == make_tensors().keys()


@pytest.mark.parametrize("name", ["config.json", "model-00001-of-00002.safetensors"])
def test_a_link_out_of_the_folder_is_refused(source, tmp_path, name):
    (source / name).rename(tmp_path / "elsewhere")
    (source / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"is a link to .*elsewhere"):
        read_index(source)


def test_a_cache_link_into_another_repository_is_refused(source, tmp_path):
    snapshot = as_cache(source, tmp_path / "hub")
    other = tmp_path / "hub" / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (other / "blob").write_text("{}")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(other / "blob")
    with pytest.raises(CheckpointError, match="is a link to"):
        read_index(snapshot)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "a\\b", "a\0b", "a\nb", "\ud800", "é" * 128]
    + [
        f"additional_chat_templates/{end}" for end in ("", "x.safetensors", "a/b.jinja", "../x.jinja", "a\nb.jinja")
    ],
)
def test_names_that_are_no_plain_names(source, name):
    with pytest.raises(CheckpointError, match="not a plain name"):
        resolve_file(source, name)


def test_the_tokenizer_travels_and_records_of_the_old_model_do_not(source):
    assert list_companions(source) == ("generation_config.json", "tokenizer.json")


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors.index.fp8.json",
        "model.safetensors.index_old.json",
        "pytorch_model.bin.index.json",
        "imatrix.dat",
        "imatrix_unsloth.json",
        "events.out.tfevents.17",
        "Weights.NPZ",
        "model.tar",
    ],
)
def test_other_weights_and_what_was_measured_of_the_old_ones_do_not_travel(source, name):
    (source / name).write_text("")
    assert list_companions(source) == ("generation_config.json", "tokenizer.json")


def test_a_companion_that_links_out_is_refused(source, tmp_path):
    (tmp_path / "secret").write_text("")
    (source / "vocab.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="secret"):
        list_companions(source)


@pytest.fixture
def template(source):
    folder = source / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("{{ tools }}")
    return folder / "tool_use.jinja"


def test_further_chat_templates_travel_and_nothing_else_of_their_folder(source, template, tmp_path):
    (template.parent / "notes.md").write_text("")
    (template.parent / "model.safetensors").write_text("")
    name = "additional_chat_templates/tool_use.jinja"
    assert list_companions(source) == (name, "generation_config.json", "tokenizer.json")
    assert resolve_file(source, name) == template
    snapshot = as_cache(source, tmp_path / "hub")
    (snapshot / template.parent.name).mkdir()
    template.rename(snapshot.parent.parent / "blobs" / "template")
    (snapshot / name).symlink_to("../../../blobs/template")
    assert name in list_companions(snapshot) and resolve_file(snapshot, name).read_text() == "{{ tools }}"


@pytest.mark.parametrize("linked", ["additional_chat_templates", "additional_chat_templates/tool_use.jinja"])
def test_a_chat_template_that_links_out_is_refused(source, template, tmp_path, linked):
    (source / linked).rename(tmp_path / "elsewhere")
    (source / linked).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=rf"{linked} is a link to .*elsewhere"):
        list_companions(source)


def test_a_link_to_itself_is_refused(source):
    (source / "config.json").unlink()
    (source / "config.json").symlink_to("config.json")
    with pytest.raises(CheckpointError, match="is a link to"):
        resolve_file(source, "config.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_opened(source):
    os.mkfifo(source / "model.safetensors")
    with pytest.raises(CheckpointError, match="is missing"):
        resolve_file(source, "model.safetensors")


def test_many_files_are_open_a_few_at_a_time(tmp_path):
    for number in range(300):
        (tmp_path / str(number)).write_bytes(bytes([number % 256]))
    before = len(os.listdir("/proc/self/fd"))
    with SourceFiles(tmp_path) as files:
        for number in [*range(300), *range(300)]:
            assert os.pread(files.descriptor(str(number)), 2, 0) == bytes([number % 256])
            assert len(os.listdir("/proc/self/fd")) < before + 70
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_stamp_tells_a_change(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    stamps = [stamp_file(path)]
    os.utime(path, ns=(1, 1))
    stamps.append(stamp_file(path))
    (tmp_path / "other").write_bytes(b"one")
    os.utime(tmp_path / "other", ns=(1, 1))
    os.replace(tmp_path / "other", path)
    stamps.append(stamp_file(path))
    path.write_bytes(b"more")
    os.utime(path, ns=(1, 1))
    stamps.append(stamp_file(path))
    assert len(set(stamps)) == 4
