"""A checkpoint in a store of artifacts: once, whole when its MLmodel is there, gone on with when interrupted."""

import shutil

import pytest
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from moe_compress.errors import RegistryAwayError
from moe_compress.registry.upload import upload_checkpoint


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def written(monkeypatch):
    """The names of the files a store was given, in order."""
    names = []
    log_artifact = LocalArtifactRepository.log_artifact

    def remember(self, local_file, artifact_path=None):
        names.append(local_file.rpartition("/")[2])
        return log_artifact(self, local_file, artifact_path)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", remember)
    return names


def test_a_second_upload_sends_no_weights_and_the_model_file_last(checkpoint, tmp_path, written):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    (folder / "more").mkdir()
    (folder / "more" / "part.safetensors").write_bytes(b"weights")
    address = (tmp_path / "store").as_uri()
    assert upload_checkpoint(folder, address) == address
    assert content(tmp_path / "store") == content(folder)
    assert written[-1] == "MLmodel" and "model.safetensors" in written and "part.safetensors" in written
    written.clear()
    upload_checkpoint(folder, address)
    assert written[-1] == "MLmodel" and not [name for name in written if name.endswith(".safetensors")]


def test_weights_that_were_cut_off_are_sent_again(checkpoint, tmp_path, written):
    store = tmp_path / "store"
    store.mkdir()
    (store / "model.safetensors").write_bytes(b"cut")
    upload_checkpoint(checkpoint, store.as_uri())
    assert "model.safetensors" in written and content(store) == content(checkpoint)


def test_a_store_that_does_not_take_it_is_told_in_one_sentence(checkpoint, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(RegistryAwayError, match=r"could not upload .*tiny to file://.*try again"):
        upload_checkpoint(checkpoint, (tmp_path / "file" / "store").as_uri())
