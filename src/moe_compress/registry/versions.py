"""Register a checkpoint by reference, once per run key, and find versions again by alias."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from moe_compress.errors import RegistryError
from moe_compress.registry.client import active_run_id, mlflow_client
from moe_compress.registry.mlmodel import FILE_NAME
from moe_compress.registry.upload import upload_checkpoint

IDENTITY_TAGS = ("run_key", "candidate_weights_digest")
"""Tags that tell whether two registrations are the same; a registration needs one of them."""

RELEASED = "released"
"""The tag of a version whose release went through to its end: the alias it was given then."""

MAX_TAG_LENGTH = 5000
_MOST_VERSIONS = 1000  # of one model that are looked at; the newest come first
_LABEL_LENGTH = 16  # of each identity in an address
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_IDENTITY_VALUE = re.compile(r"[A-Za-z0-9._:-]{1,200}")


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes:
        name: the registered model's name.
        version: its number, as MLflow writes it.
        created: whether this call made it; False if it was there.
        source: address of the checkpoint folder, which stays where it is.
        tags: the version's lineage.
        run_id: the MLflow run it came from, empty if none is known.
    """

    name: str
    version: str
    created: bool
    source: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    run_id: str = ""

    @property
    def uri(self) -> str:
        """The address that `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.name}/{self.version}"

    @property
    def is_stored(self) -> bool:
        """Whether the checkpoint's files are in a store, such as S3, that they can be fetched from."""
        return _local_path(self.source) is None

    @property
    def is_here(self) -> bool:
        """Whether the checkpoint's files are on this machine."""
        path = _local_path(self.source)
        return path is not None and path.is_dir()

    @property
    def folder(self) -> Path:
        """The checkpoint folder.

        Raises:
            RegistryError: if it is not on this machine.
        """
        path = _local_path(self.source)
        if path is None or not path.is_dir():
            raise RegistryError(
                f"{self.uri} lies at {self.source}, which is no folder of this machine; fetch it with "
                f"mlflow artifacts download --artifact-uri {self.uri}, and give that folder"
            )
        return path


def register_version(
    model_name: str,
    folder: Path | str,
    tags: Mapping[str, str],
    alias: str | None = "candidate",
    run_id: str | None = None,
) -> RegisteredVersion:
    """Register a checkpoint folder where it lies and point an alias at it.

    Version and tags are written in one request and the alias last, so whatever an interruption leaves has no
    alias, and the same call completes it.

    Args:
        model_name: letters, digits, `.`, `_` and `-`.
        folder: a checkpoint folder with its `MLmodel`, or an address such as `s3://bucket/checkpoint`.
        tags: the lineage; `run_key` or `candidate_weights_digest` tells whether it is registered already.
        alias: the alias to point at the version; None for none yet.
        run_id: the MLflow run the version came from; the active one if not given.

    Raises:
        RegistryError: if name, tags or folder cannot be registered, or MLflow refuses.
    """
    _check_name(model_name)
    identity = _identity(model_name, tags)
    source = _source(folder)
    kept_tags = {key: shortened(str(value)) for key, value in tags.items()}
    with mlflow_client(f"register '{model_name}'") as client:
        _ensure_model(client, model_name)
        found = _find(client, model_name, identity)
        if found is None:
            run_id = run_id or active_run_id()
            # Runs of one key can give other weights of equal size, on another device for one.
            label = "-".join([model_name, *(value[:_LABEL_LENGTH] for value in identity.values())])
            source = _accepted_source(client, source, label, run_id)
            version = client.create_model_version(
                model_name, source, run_id=run_id, tags=kept_tags, await_creation_for=0
            ).version
        else:
            version = found.version
            _complete_tags(client, found, kept_tags)
        if alias is not None:
            client.set_registered_model_alias(model_name, alias, version)
        registered = client.get_model_version(model_name, str(version))
    return _registered(registered, created=found is None)


def finish_release(version: RegisteredVersion, alias: str) -> None:
    """Point an alias of a model at a version that is whole, and note that its release was finished.

    Raises:
        RegistryError: if MLflow refuses.
    """
    with mlflow_client(f"point '{alias}' at '{version.name}' version {version.version}") as client:
        client.set_registered_model_alias(version.name, alias, version.version)
        client.set_model_version_tag(version.name, version.version, RELEASED, alias)


def resolve(model_name: str, alias: str) -> RegisteredVersion:
    """Return the version an alias points at.

    Raises:
        RegistryError: if the model or the alias is not there.
    """
    _check_name(model_name)
    with mlflow_client(f"find '{model_name}@{alias}'") as client:
        aliases = aliases_of(client, model_name)
        if alias in aliases:
            return _registered(client.get_model_version(model_name, aliases[alias]), created=False)
    known = ", ".join(sorted(aliases)) or "none"
    raise RegistryError(
        f"model '{model_name}' has no alias '{alias}'; its aliases: {known}; run its pipeline to release one"
    )


def find_version(model_name: str, version: str | None = None, alias: str | None = None) -> RegisteredVersion:
    """Return a version by its number or by an alias; with neither the newest.

    Raises:
        RegistryError: if there is no such version.
    """
    if alias is not None:
        return resolve(model_name, alias)
    versions = list_versions(model_name)
    for found in versions:
        if version in (None, found.version):
            return found
    known = ", ".join(found.version for found in versions) or "none"
    wanted = f"version {version}" if version else "version"
    raise RegistryError(f"model '{model_name}' has no {wanted}; its versions: {known}")


def list_versions(model_name: str) -> list[RegisteredVersion]:
    """Return a model's versions, the newest first; none where there is no such model.

    Raises:
        RegistryError: if MLflow refuses.
    """
    _check_name(model_name)
    with mlflow_client(f"list the versions of '{model_name}'") as client:
        found = client.search_model_versions(f"name='{model_name}'", max_results=_MOST_VERSIONS)
    return sorted((_registered(each, created=False) for each in found), key=lambda each: -int(each.version))


def list_aliases(model_name: str) -> dict[str, str]:
    """Return alias -> version of a model; none where there is no such model.

    Raises:
        RegistryError: if MLflow refuses.
    """
    _check_name(model_name)
    with mlflow_client(f"list the aliases of '{model_name}'") as client:
        return aliases_of(client, model_name)


def aliases_of(client: Any, model_name: str) -> dict[str, str]:
    """Return a registered model's aliases and the versions they point at; empty if there is no such model."""
    models = client.search_registered_models(f"name='{model_name}'")
    return {alias: str(version) for model in models for alias, version in model.aliases.items()}


def shortened(value: str, length: int = MAX_TAG_LENGTH) -> str:
    """Return a tag's value, cut with a digest of the whole if it is longer than servers take."""
    if len(value) <= length:
        return value
    note = f"... ({len(value)} characters, sha256 {hashlib.sha256(value.encode()).hexdigest()})"
    return value[: length - len(note)] + note


def read_json_tag(value: str) -> Any:
    """Return what a tag says in JSON; None where it was cut and is JSON no longer."""
    try:
        return json.loads(value)
    except ValueError:
        return None


def _check_name(model_name: str) -> None:
    if not _MODEL_NAME.fullmatch(model_name):
        raise RegistryError(
            f"{model_name!r} cannot be a model's name; use up to 200 letters, digits, '.', '_' and '-' "
            "(registered_model in the domain's block)"
        )


def _identity(model_name: str, tags: Mapping[str, str]) -> dict[str, str]:
    identity = {key: str(tags[key]) for key in IDENTITY_TAGS if tags.get(key)}
    if not identity:
        raise RegistryError(
            f"'{model_name}' came with no {' or '.join(IDENTITY_TAGS)} tag, so registering it twice "
            "would make two versions; pass one"
        )
    for key, value in identity.items():
        if not _IDENTITY_VALUE.fullmatch(value):
            raise RegistryError(f"tag {key}={value!r} of '{model_name}' is no digest; pass a hexadecimal one")
    return identity


def _source(folder: Path | str) -> str:
    """Return the folder's address, absolute, because the registry does not know our working directory."""
    if isinstance(folder, str) and "://" in folder:
        return folder
    path = Path(folder).resolve()
    if not (path / FILE_NAME).is_file():
        raise RegistryError(f"{folder} has no {FILE_NAME} file; call write_mlmodel on the checkpoint first")
    return path.as_uri()


def _local_path(source: str) -> Path | None:
    """Return the path an address stands for on this machine, or None if it is elsewhere."""
    parts = urlparse(source)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def _ensure_model(client: Any, model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _find(client: Any, model_name: str, identity: Mapping[str, str]) -> Any | None:
    """Return the newest version of the same identity whose checkpoint is still there."""
    asked = [f"name='{model_name}'", *(f"tags.{key}='{value}'" for key, value in identity.items())]
    versions = client.search_model_versions(" and ".join(asked))
    for version in sorted(versions, key=lambda found: int(found.version), reverse=True):
        path = _local_path(version.source)
        if path is None or (path / FILE_NAME).is_file():
            return version
    return None


def _complete_tags(client: Any, version: Any, tags: Mapping[str, str]) -> None:
    """Add what an older release did not write; what is there tells of the run that made the version."""
    for key, value in tags.items():
        if key not in version.tags:
            client.set_model_version_tag(version.name, version.version, key, value)


def _accepted_source(client: Any, source: str, label: str, run_id: str | None) -> str:
    """Return the source as the store takes it; a server takes no folder of this machine but a run's artifacts."""
    import mlflow

    path = _local_path(source)
    if path is None or not str(mlflow.get_registry_uri()).startswith("http"):
        return source
    if run_id is None:
        raise RegistryError(
            f"the tracking server refuses {path}, a folder of this machine, as a model; register it within a run, "
            "whose artifacts say where the server's store is (docs/tracking.md)"
        )
    run = client.get_run(run_id).info
    artifacts = _local_path(run.artifact_uri)
    if artifacts is not None:
        return _linked_into_run(path, artifacts, label)
    root = run.artifact_uri
    # A server that passes artifacts on takes only the run's own; elsewhere the folder is there for all runs.
    if not root.startswith("mlflow-artifacts:"):
        root = f"{client.get_experiment(run.experiment_id).artifact_location}/checkpoints"
    return upload_checkpoint(path, f"{root}/{label}")


def _linked_into_run(folder: Path, artifacts: Path, name: str) -> str:
    """Hard-link a folder into its run's artifact folder, copying no byte, and return the new address."""
    linked, part = artifacts / name, artifacts / f".{name}.part"
    if linked.is_dir():
        return linked.as_uri()
    try:
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(folder, part, copy_function=os.link)
        os.replace(part, linked)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise RegistryError(
            f"{folder} cannot be hard-linked into the artifact root at {artifacts}; "
            "put the checkpoints and --default-artifact-root on one file system"
        ) from error
    return linked.as_uri()


def _registered(version: Any, created: bool) -> RegisteredVersion:
    return RegisteredVersion(
        version.name, str(version.version), created, str(version.source), dict(version.tags), version.run_id or ""
    )
