"""Registering by reference: once per key, resumable, zero copies, and loadable as it lies."""

import json
import shutil
import sqlite3

import mlflow
import pytest
from mlflow import MlflowClient

from moe_compress.errors import RegistryError
from moe_compress.registry.promotion import promote, roll_back
from moe_compress.registry.versions import (
    MAX_TAG_LENGTH,
    find_version,
    list_aliases,
    register_version,
    resolve,
)

TAGS = {"run_key": "a1b2", "candidate_weights_digest": "c3d4", "base_id": "tiny", "method": "easy_ep"}
NAME = "moe-medical"


def bytes_under(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_same_key_is_one_version_and_its_alias_is_pointed_again(store, checkpoint):
    first = register_version(NAME, checkpoint, TAGS)
    other = register_version(NAME, checkpoint, {**TAGS, "run_key": "ffff"})
    assert resolve(NAME, "candidate").version == other.version
    again = register_version(NAME, checkpoint, {**TAGS, "gates": "passed"})
    assert (first.created, other.created, again.created) == (True, True, False)
    assert (first.version, other.version, again.version) == ("1", "2", "1")
    assert resolve(NAME, "candidate").version == "1"
    assert again.tags == {**TAGS, "gates": "passed"}
    assert first.source == checkpoint.as_uri()
    assert first.uri == "models:/moe-medical/1"


def test_a_version_keeps_telling_of_the_run_that_made_it(store, checkpoint):
    register_version(NAME, checkpoint, {**TAGS, "git_commit": "first"})
    again = register_version(NAME, checkpoint, {**TAGS, "git_commit": "second"})
    assert again.tags == {**TAGS, "git_commit": "first"}


def test_the_same_key_with_other_weights_is_another_version(store, checkpoint):
    register_version(NAME, checkpoint, TAGS)
    assert register_version(NAME, checkpoint, {**TAGS, "candidate_weights_digest": "eeee"}).created


def test_a_version_whose_folder_is_gone_is_not_reused(store, checkpoint):
    moved = store / "moved"
    shutil.copytree(checkpoint, moved)
    register_version(NAME, moved, TAGS)
    shutil.rmtree(moved)
    again = register_version(NAME, checkpoint, TAGS)
    assert again.created
    assert resolve(NAME, "candidate").source == checkpoint.as_uri()


def test_an_interrupted_registration_is_completed_by_the_next(store, checkpoint, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", interrupt)
        with pytest.raises(KeyboardInterrupt):
            register_version(NAME, checkpoint, TAGS)
    with pytest.raises(RegistryError, match="has no alias 'candidate'"):
        resolve(NAME, "candidate")
    (left,) = MlflowClient().search_model_versions(f"name='{NAME}'")
    assert left.tags == TAGS  # whole but for the alias
    again = register_version(NAME, checkpoint, TAGS)
    assert (again.version, again.created) == ("1", False)
    assert resolve(NAME, "candidate").version == "1"


def test_mlflow_loads_the_folder_itself_and_no_byte_is_copied(store, checkpoint):
    with mlflow.start_run() as run:
        register_version(NAME, checkpoint, TAGS)
    assert MlflowClient().get_model_version(NAME, "1").run_id == run.info.run_id
    weights = next(checkpoint.glob("*.safetensors"))
    before = (weights.stat().st_ino, weights.read_bytes())
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}@candidate")
    written = loaded.predict(["Question : Which chapter ?", "Answer :"], params={"max_new_tokens": 3})
    assert len(written) == 2
    assert all(isinstance(text, str) and len(text.split()) <= 3 for text in written)
    assert (weights.stat().st_ino, weights.read_bytes()) == before
    assert not (store / "artifacts").exists() or bytes_under(store / "artifacts") == 0
    assert [path.name for path in store.rglob("*.safetensors")] == []


def test_secrets_of_the_environment_reach_no_row_of_the_store(store, checkpoint, monkeypatch):
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "DATABASE_URL"):
        monkeypatch.setenv(name, f"planted-{name}")
    with mlflow.start_run() as run:
        register_version(NAME, checkpoint, TAGS, run_id=run.info.run_id)
    with sqlite3.connect(store / "mlflow.db") as database:
        dump = "\n".join(database.iterdump())
    assert TAGS["candidate_weights_digest"] in dump
    assert "planted-" not in dump


def test_a_long_tag_is_cut_with_its_digest(store, checkpoint):
    tags = register_version(
        NAME, checkpoint, {**TAGS, "plan": "x" * (MAX_TAG_LENGTH + 1), "y": "y" * MAX_TAG_LENGTH}
    ).tags
    assert len(tags["plan"]) == MAX_TAG_LENGTH
    assert f"({MAX_TAG_LENGTH + 1} characters, sha256 " in tags["plan"]
    assert tags["y"] == "y" * MAX_TAG_LENGTH


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "a'b", "-a", "x" * 201])
def test_a_name_that_cannot_be_addressed_is_refused(name, checkpoint):
    with pytest.raises(RegistryError, match=r"cannot be a model's name.*registered_model"):
        register_version(name, checkpoint, TAGS)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"base_id": "tiny"}, "no run_key or candidate_weights_digest tag"),
        ({"run_key": ""}, "no run_key or candidate_weights_digest tag"),
        ({"run_key": "a' or name='b"}, "is no digest"),
    ],
)
def test_tags_must_identify(tags, message, checkpoint):
    with pytest.raises(RegistryError, match=message):
        register_version(NAME, checkpoint, tags)


def test_a_folder_without_its_mlmodel_is_refused(tmp_path):
    with pytest.raises(RegistryError, match="has no MLmodel file; call write_mlmodel"):
        register_version(NAME, tmp_path, TAGS)


def test_a_remote_address_is_registered_as_it_is(store):
    version = register_version(NAME, "s3://bucket/checkpoint", TAGS)
    assert version.source == "s3://bucket/checkpoint"
    assert not register_version(NAME, "s3://bucket/checkpoint", TAGS).created


def test_what_mlflow_refuses_is_told_in_one_sentence(store, checkpoint):
    with pytest.raises(RegistryError, match=r"could not register 'moe-medical' in sqlite:///.*'latest' alias name"):
        register_version(NAME, checkpoint, TAGS, alias="latest")


def test_an_unknown_alias_lists_the_known_ones(store, checkpoint):
    with pytest.raises(RegistryError, match="has no alias 'champion'; its aliases: none"):
        resolve(NAME, "champion")
    register_version(NAME, checkpoint, TAGS)
    with pytest.raises(RegistryError, match="has no alias 'champion'; its aliases: candidate"):
        resolve(NAME, "champion")


def test_promotion_and_one_step_back(store, checkpoint):
    first = register_version(NAME, checkpoint, TAGS)
    assert promote(first, by="ann", why="first") is True
    with pytest.raises(RegistryError, match="no earlier champion"):
        roll_back(NAME)
    second = register_version(NAME, checkpoint, {**TAGS, "run_key": "ffff"})
    assert [promote(second, "ann", "better"), promote(second, "ben", "again")] == [True, False]
    assert (resolve(NAME, "champion").version, resolve(NAME, "previous").version) == ("2", "1")
    record = json.loads(resolve(NAME, "champion").tags["promoted"])
    assert (record["by"], record["why"]) == ("ann", "better")
    assert roll_back(NAME, "cas", "loops").version == "1"
    assert resolve(NAME, "champion").version == "1"
    assert json.loads(find_version(NAME, "2").tags["rolled_back"])["why"] == "loops"
    with pytest.raises(RegistryError, match="no earlier champion"):
        roll_back(NAME)
    assert promote(find_version(NAME, "2"), "ann", "mended") and "rolled_back" not in find_version(NAME, "2").tags


def test_a_promotion_killed_before_it_forgave_a_rollback_is_completed_by_the_next(store, checkpoint, monkeypatch):
    for key in ("first", "second"):
        version = register_version(NAME, checkpoint, {**TAGS, "run_key": key})
        promote(version)
    roll_back(NAME)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "delete_model_version_tag", interrupt)
        with pytest.raises(KeyboardInterrupt):
            promote(find_version(NAME, "2"))
    assert "rolled_back" in resolve(NAME, "champion").tags
    assert promote(find_version(NAME, "2")) is False
    assert "rolled_back" not in resolve(NAME, "champion").tags


@pytest.mark.parametrize("step", ["set_model_version_tag", "set_registered_model_alias"])
@pytest.mark.parametrize("calls", [0, 1])
def test_a_promotion_that_is_killed_at_any_step_never_loses_the_champion(
    store, checkpoint, monkeypatch, step, calls
):
    first = register_version(NAME, checkpoint, TAGS)
    promote(first)
    second = register_version(NAME, checkpoint, {**TAGS, "run_key": "ffff"})
    made, left = getattr(MlflowClient, step), [calls]

    def interrupt(*args, **kwargs):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return made(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, step, interrupt)
        if (step, calls) == ("set_model_version_tag", 1):  # there is only one such step
            assert promote(second)
        else:
            with pytest.raises(KeyboardInterrupt):
                promote(second)
            assert resolve(NAME, "champion").version == "1"
    promote(second)
    assert (resolve(NAME, "champion").version, resolve(NAME, "previous").version) == ("2", "1")


def test_versions_are_found_by_number_alias_or_as_the_newest(store, checkpoint):
    with pytest.raises(RegistryError, match="has no version; its versions: none"):
        find_version(NAME)
    register_version(NAME, checkpoint, TAGS)
    register_version(NAME, checkpoint, {**TAGS, "run_key": "ffff"}, alias=None)
    assert [find_version(NAME).version, find_version(NAME, "1").version] == ["2", "1"]
    assert find_version(NAME, alias="candidate").version == "1"
    assert list_aliases(NAME) == {"candidate": "1"} and list_aliases("unknown") == {}
    with pytest.raises(RegistryError, match="has no version 7; its versions: 2, 1"):
        find_version(NAME, "7")


def test_files_that_are_elsewhere_are_told(store, tmp_path):
    version = register_version(NAME, "s3://bucket/checkpoint", TAGS)
    assert not version.is_here
    with pytest.raises(RegistryError, match=r"lies at s3://bucket/checkpoint.*mlflow artifacts download"):
        _ = version.folder
