"""A base model is known by digests: of files here, and of a hub's files as its own API tells them."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants
from kedro.io import DatasetError

from moe_compress.datasets.checkpoint import CheckpointDataset, refer_to
from moe_compress.errors import CheckpointError
from moe_compress.operations.base import inspect_base
from moe_compress.pipelines.version_tags import git_blob_id, settings_files
from moe_compress.registry.versions import RegisteredVersion, register_version

LARGE = (".safetensors", "tokenizer.json")  # what a hub keeps outside git


@pytest.fixture
def hub(checkpoint, monkeypatch):
    """A hub with one model, the checkpoint; what it is asked is kept."""
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()} | {"README.md": b"# card"}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            known = self.path.startswith("/api/models/org/base")
            siblings = [tell(name, content) for name, content in self.server.files.items()]
            body = {"id": "org/base", "modelId": "org/base", "sha": self.server.sha, "siblings": siblings}
            content = json.dumps(body if known else {"error": "none"}).encode()
            self.send_response(200 if known else 404)
            if not known:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.sha, server.asked = files, "c0ffee", []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield server
        server.shutdown()


def tell(name, content):
    import hashlib

    told = {"rfilename": name, "size": len(content), "blobId": git_blob_id(content)}
    if name.endswith(LARGE):
        told["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return told


@pytest.fixture
def known(checkpoint):
    """A version that was made from the checkpoint."""
    base = refer_to(checkpoint, None)
    tags = {"base_settings_files": json.dumps(settings_files(base)), "base_settings_digest": base.settings_digest}
    return RegisteredVersion("moe-medical", "1", False, tags=tags)


def inspect(address, *versions):
    return inspect_base(CheckpointDataset(address, "digests"), versions)


def test_a_hub_model_is_told_apart_without_a_download(hub, checkpoint, known):
    facts, local = inspect("hf://org/base@main", known), refer_to(checkpoint, None)
    assert (facts.weights_digest, facts.settings_digest) == (local.weights_digest, local.settings_digest)
    assert (facts.name, facts.revision, facts.changed_settings) == ("org/base", "c0ffee", ())
    assert [path.partition("?")[0] for path in hub.asked] == ["/api/models/org/base/revision/main"]


def test_a_readme_commit_changes_the_revision_alone(hub, known):
    before = inspect("hf://org/base", known)
    hub.files["README.md"], hub.sha = b"# another card", "beef"
    after = inspect("hf://org/base", known)
    assert (before.weights_digest, before.settings_digest) == (after.weights_digest, after.settings_digest)
    assert after.revision == "beef"


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_changed_settings_are_named(hub, known, name):
    hub.files[name] += b" "
    facts = inspect("hf://org/base", known)
    assert (facts.settings_digest, facts.changed_settings) == (None, (name,))


def test_new_and_lost_settings_are_named(hub, known):
    hub.files["chat_template.jinja"] = b"{{ x }}"
    del hub.files["tokenizer_config.json"]
    assert inspect("hf://org/base", known).changed_settings == ("chat_template.jinja", "tokenizer_config.json")


def test_new_weights_are_another_digest(hub, known):
    before = inspect("hf://org/base", known)
    hub.files["model.safetensors"] += b" "
    assert inspect("hf://org/base", known).weights_digest != before.weights_digest


def test_without_a_version_nothing_is_known_of_settings(hub):
    assert inspect("hf://org/base").settings_digest is None


def test_settings_too_many_for_a_tag_are_not_known(hub, known):
    cut = {**known.tags, "base_settings_files": known.tags["base_settings_files"][:50] + "... (5001 characters"}
    facts = inspect("hf://org/base", RegisteredVersion("moe-medical", "2", False, tags=cut))
    assert facts.settings_digest is None and "config.json" in facts.changed_settings
    assert inspect("hf://org/base", RegisteredVersion("moe-medical", "2", False, tags=cut), known).settings_digest


def test_refusals_of_the_hub_are_one_sentence(hub, known, monkeypatch):
    with pytest.raises(CheckpointError, match=r"does not tell of 'org/other' at revision main .*--base"):
        inspect("hf://org/other", known)
    hub.files = {"model.safetensors": b"", "config.json": b"{}"}
    monkeypatch.setattr(f"{__name__}.LARGE", ())
    with pytest.raises(CheckpointError, match=r"tells no sha256 of model\.safetensors"):
        inspect("hf://org/base", known)
    hub.files = {"config.json": b"{}"}
    with pytest.raises(CheckpointError, match="has no safetensors files"):
        inspect("hf://org/base", known)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"HF_HUB_OFFLINE.*check against a folder"):
        inspect("hf://org/base", known)


def test_a_folder_and_a_registered_model(store, checkpoint, monkeypatch):
    monkeypatch.chdir(store)
    register_version("base", checkpoint, {"run_key": "a1"}, alias="champion")
    folder = inspect(str(checkpoint))
    registered = inspect("models:/base@champion")
    assert registered.weights_digest == folder.weights_digest == inspect(checkpoint.as_uri()).weights_digest
    assert (registered.name, registered.revision) == ("base", "1")
    assert inspect("models:/base/1").settings_digest == folder.settings_digest


def test_a_registered_model_elsewhere_is_known_by_its_tags(store, monkeypatch):
    monkeypatch.chdir(store)
    told = {"run_key": "a1", "candidate_weights_digest": "w1", "candidate_settings_digest": "s1"}
    register_version("base", "s3://bucket/base", told)
    assert inspect("models:/base@candidate").settings_digest == "s1"
    register_version("other", "s3://bucket/other", {"run_key": "a1"})
    with pytest.raises(DatasetError, match="mlflow artifacts download"):
        inspect("models:/other/1")


def test_git_gives_a_file_the_same_id(tmp_path):
    import subprocess

    path = Path(tmp_path / "file")
    path.write_bytes(b"{}\n")
    found = subprocess.run(["git", "hash-object", path], capture_output=True, text=True, check=True)
    assert git_blob_id(b"{}\n") == found.stdout.strip()
