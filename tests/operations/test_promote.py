"""A version in a store is promoted as one in a folder is: its files are hashed, and refused where they changed."""

from __future__ import annotations

import hashlib
import shutil
from importlib.util import find_spec

import pytest
from tests.operations.test_story import flip_a_byte
from tests.pipelines import servers

from moe_compress.checkpoint.checksums import write_checksums
from moe_compress.checkpoint.digest import digest_file, join_digests
from moe_compress.errors import RegistryError
from moe_compress.operations.promote import promote_model
from moe_compress.operations.verify import verify_version
from moe_compress.registry.upload import upload_checkpoint
from moe_compress.registry.versions import register_version, resolve

NAME = "moe-stored"
MISSING = [name for name in ("moto", "boto3") if find_spec(name) is None]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Have MLflow talk to an S3-compatible store with one bucket, and return the bucket's address."""
    import boto3

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with servers.object_store(tmp_path) as address:
        monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", address)
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket=servers.BUCKET)
        yield f"s3://{servers.BUCKET}"


def tags_of(folder):
    files = {path.name: digest_file(path) for path in folder.iterdir() if path.name != "MLmodel"}
    weights = {name: digest for name, digest in files.items() if name.endswith(".safetensors")}
    return {
        "run_key": "a1b2",
        "gates_passed": "true",
        "candidate_weights_digest": join_digests(weights),
        "checksums_digest": hashlib.sha256(write_checksums(folder, files).read_bytes()).hexdigest(),
    }


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (extra 'servers')")
def test_files_in_a_store_are_fetched_or_given_as_a_copy(store, bucket, checkpoint, tmp_path, caplog):
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, folder)
    tags = tags_of(folder)
    whole = register_version(NAME, upload_checkpoint(folder, f"{bucket}/whole"), tags)
    assert promote_model(NAME, None, "ann", "reviewed")["moved"] is True
    assert f"fetching {whole.uri} (0.0 GB) from {bucket}/whole" in caplog.text
    verified = verify_version(whole)
    assert verified["intact"] and verified["folder"] == f"{bucket}/whole"

    copy = shutil.copytree(folder, tmp_path / "copy")
    flip_a_byte(folder / "model.safetensors")
    register_version(NAME, upload_checkpoint(folder, f"{bucket}/damaged"), {**tags, "run_key": "ffff"})
    with pytest.raises(RegistryError, match=r"is not what was registered: model\.safetensors"):
        promote_model(NAME, None, "ann", "reviewed")
    assert promote_model(NAME, None, "ann", "reviewed", copy)["moved"] is True
    register_version(NAME, "s3://elsewhere/whole", {**tags, "run_key": "eeee"})
    with pytest.raises(RegistryError, match=r"could not fetch .*s3://elsewhere.*try again"):
        promote_model(NAME, None, "ann", "reviewed")
    assert resolve(NAME, "champion").version == "2"
