"""Send what was kept while a server was away: runs, what they logged, their files, and registrations."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_compress.errors import RegistryAwayError, RegistryError
from moe_compress.registry.client import active_run_id, is_shut_out, mlflow_client
from moe_compress.registry.offline import KeepingStore, find_store
from moe_compress.registry.upload import storing
from moe_compress.registry.versions import RegisteredVersion, finish_release, register_version

logger = logging.getLogger(__name__)

PROMISED_TAG = "moe_compress.promised_id"
"""The run's tag that keeps a creation from happening twice when its answer was lost."""

LOCK_SECONDS = 60

IN_ORDER = ("run", "request")
"""Kinds of entries of which none may overtake another.

Artifacts only need their run, and registrations those of the same model before them, too.
"""


@dataclass
class Delivery:
    """What became of kept entries.

    Attributes:
        folder: where they are kept.
        sent: how many the server has now.
        registered: the versions made or found, such as `moe-medical version 3 (alias candidate)`.
        refused: a sentence for each entry the server will never take.
        refused_registrations: the models whose registration is among them.
        left: those that are still kept.
        reason: why they are, if any are.
    """

    folder: Path
    sent: int = 0
    registered: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    refused_registrations: list[str] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)
    reason: str | None = None

    @property
    def registrations(self) -> list[str]:
        """The models whose registration is still kept."""
        return [entry["model_name"] for entry in self.left if entry["kind"] == "registration"]

    @property
    def is_level(self) -> bool:
        """Whether no request is kept, so that a new one overtakes none."""
        return not any(entry["kind"] in IN_ORDER for entry in self.left)


def deliver(store: KeepingStore, registrations: bool) -> Delivery:
    """Send kept entries in order, until the server does not answer or does not let us in.

    Args:
        store: the server's store, and its kept entries.
        registrations: whether to register models too, which may upload a checkpoint.
    """
    delivery = Delivery(store.outbox.folder)
    try:
        # Another process may be uploading a checkpoint; a run in the middle does not wait for that.
        with store.outbox.locked(LOCK_SECONDS if registrations else 0):
            _send_entries(store, registrations, delivery)
    except RegistryAwayError as error:
        delivery.reason = str(error)
    delivery.left = store.outbox.contents()
    return delivery


def _send_entries(store: KeepingStore, registrations: bool, delivery: Delivery) -> None:
    waiting: set[str] = set()  # models of which no later registration may move the alias first
    for path in store.outbox.entries():
        entry = store.outbox.read(path)
        is_registration = entry["kind"] == "registration"
        if is_registration and (not registrations or entry["model_name"] in waiting):
            continue
        try:
            delivery.registered += _send(store, entry)
        except RegistryError as error:
            if not (isinstance(error, RegistryAwayError) or is_shut_out(error.__cause__)):
                _refuse(store, path, str(error), delivery)
                continue
            delivery.reason = str(error)
            if entry["kind"] in IN_ORDER:
                return
            if is_registration:
                waiting.add(entry["model_name"])
        else:
            path.unlink()
            delivery.sent += 1


def _refuse(store: KeepingStore, path: Path, reason: str, delivery: Delivery) -> None:
    entry = store.outbox.read(path)
    store.outbox.refuse(path, reason)
    delivery.refused.append(reason)
    if entry["kind"] == "registration":
        delivery.refused_registrations.append(entry["model_name"])
    if entry["kind"] == "run":  # what names it would wait for ever; without the promise the server refuses it too
        store.outbox.withdraw(entry["promised"])


def _send(store: KeepingStore, entry: dict[str, Any]) -> list[str]:
    kind = entry["kind"]
    if kind == "registration":
        return [_register(store, entry)]
    if kind == "run":
        _create_run(store, entry)
    elif kind == "artifact":
        upload_artifact(_found_id(store, entry["run_id"]), Path(entry["path"]))
    else:
        with mlflow_client(f"send a kept {entry['name']}"):
            store.send(entry["name"], _with_found_ids(store, entry["body"]))
    return []


def _with_found_ids(store: KeepingStore, body: dict[str, Any]) -> dict[str, Any]:
    """Return a request with the server's ids for promised ones; a nested run's tags name its parent's too."""
    found: dict[str, Any] = json.loads(store.outbox.with_found_ids(json.dumps(body)))
    return found


def _create_run(store: KeepingStore, entry: dict[str, Any]) -> None:
    promised, body = entry["promised"], _with_found_ids(store, entry["body"])
    with mlflow_client(f"create the kept run {promised}"):
        if entry["experiment"]:
            body["experiment_id"] = _find_experiment(store, entry["experiment"])
        asked = {"experiment_ids": [body["experiment_id"]], "filter": f"tags.`{PROMISED_TAG}` = '{promised}'"}
        made = store.send("SearchRuns", {**asked, "max_results": 1}).runs
        if not made:
            body["tags"] = [*body.get("tags", []), {"key": PROMISED_TAG, "value": promised}]
            made = [store.send("CreateRun", body).run]
        store.outbox.fulfil(promised, made[0].info.run_id)


def _find_experiment(store: KeepingStore, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        found = store.send("GetExperimentByName", {"experiment_name": name})
        return str(found.experiment.experiment_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return str(store.send("CreateExperiment", {"name": name}).experiment_id)


def _found_id(store: KeepingStore, run_id: str) -> str:
    found = store.outbox.find_id(run_id)
    if not found:
        raise RegistryAwayError(f"run {run_id} has not been created yet; send what was kept before it first")
    return found


def _register(store: KeepingStore, entry: dict[str, Any]) -> str:
    folder, run_id = entry["folder"], entry["run_id"]
    version = register_version(
        entry["model_name"],
        folder if "://" in folder else Path(folder),
        entry["tags"],
        alias=None,
        run_id=_found_id(store, run_id) if run_id else None,
    )
    finish_release(version, entry["alias"])
    return f"{version.name} version {version.version} (alias {entry['alias']})"


def upload_artifact(run_id: str, path: Path) -> None:
    """Copy a file, or a folder under its own name, into a run's artifacts.

    Raises:
        RegistryAwayError: if the store of artifacts does not take it now.
        RegistryError: if it is not there, or MLflow refuses.
    """
    if not path.exists():
        raise RegistryError(f"{path} was to be an artifact of run {run_id} and is not there any more; run it again")
    with mlflow_client(f"upload {path}") as client, storing(f"upload {path}"):
        if path.is_dir():
            client.log_artifacts(run_id, str(path), artifact_path=path.name)
        else:
            client.log_artifact(run_id, str(path))


def upload_or_keep(run_id: str, path: Path) -> None:
    """Copy a file or folder into a run's artifacts, or keep its place where that cannot be done now.

    Raises:
        RegistryError: if it cannot be copied, and the store is none that keeps.
    """
    store = find_store()
    try:
        upload_artifact(_found_id(store, run_id) if store else run_id, path)
    except RegistryAwayError as error:
        if store is None:
            raise
        logger.warning("%s is kept by its place and uploaded later: %s", path, error)
        store.outbox.add("artifact", {"run_id": run_id, "path": str(path.resolve())})


def register_or_keep(
    model_name: str, folder: Path, tags: Mapping[str, str], alias: str
) -> RegisteredVersion | None:
    """Register a checkpoint as the active run's, or keep that to be done later and return None.

    The alias is pointed at it by `finish_or_keep`, or once what was kept is sent.

    Raises:
        RegistryError: if it cannot be registered, and the store is none that keeps.
    """
    store, run_id = find_store(), active_run_id()
    try:
        if store and store.outbox.entries():
            _send_earlier(store, model_name)
        run = _found_id(store, run_id) if store and run_id else run_id
        return register_version(model_name, folder, tags, None, run)
    except RegistryAwayError as error:
        if store is None:
            raise
        logger.warning("the registration of %s is kept: %s", model_name, error)
        place = {"model_name": model_name, "folder": str(folder.resolve()), "alias": alias, "run_id": run_id}
        store.outbox.add("registration", {**place, "tags": dict(tags)})
        return None


def finish_or_keep(version: RegisteredVersion, alias: str) -> None:
    """Point an alias at a registered version that is whole, or keep that to be done later.

    Raises:
        RegistryError: if MLflow refuses, or does not answer and the store is none that keeps.
    """
    store = find_store()
    try:
        finish_release(version, alias)
    except RegistryAwayError as error:
        if store is None:
            raise
        logger.warning("the alias '%s' of %s is kept: %s", alias, version.uri, error)
        place = {"model_name": version.name, "folder": version.source, "alias": alias, "run_id": None}
        store.outbox.add("registration", {**place, "tags": dict(version.tags)})


def _send_earlier(store: KeepingStore, model_name: str) -> None:
    """Send what is kept: above all a model's registrations, which would take its alias back from a later one."""
    delivery = store.catch_up(registrations=True)
    for reason in delivery.refused:
        logger.warning("refused, and put aside in %s: %s", delivery.folder / "refused", reason)
    if model_name in delivery.registrations:
        raise RegistryAwayError(f"an earlier registration of {model_name} still waits: {delivery.reason}")


def send_kept() -> Delivery | None:
    """Send all that is kept for the configured server; None if nothing is, or the store is none that keeps."""
    store = find_store()
    return store.catch_up(registrations=True) if store and store.outbox.entries() else None
