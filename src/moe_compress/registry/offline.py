"""MLflow's client of a server, which keeps what the server cannot take now and answers from what it knows."""

from __future__ import annotations

import json
import logging
import time
import uuid
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any

import mlflow
from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException
from mlflow.protos import service_pb2
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._tracking_service import utils

from moe_compress.errors import RegistryAwayError, RegistryError
from moe_compress.registry.client import is_away, without_credentials
from moe_compress.registry.outbox import Outbox

WRITES = ("CreateRun", "UpdateRun", "LogBatch", "LogInputs", "LogMetric", "LogParam", "SetTag", "DeleteTag")
"""What a run says of itself, which can be said later."""

READS = ("GetRun", "GetExperiment", "GetExperimentByName")
"""What starting and ending a run asks, which is answered from memory while the server is away."""

PAUSE_SECONDS = 30.0
"""How long a server that did not answer is left alone."""

logger = logging.getLogger(__name__)


def keep_what_cannot_be_sent(folder: Path) -> None:
    """Have MLflow talk to http servers through a `KeepingStore` from now on.

    Args:
        folder: holds one folder of kept entries per server.

    Raises:
        RegistryError: from MLflow's calls, if the server's address holds a password.
    """

    def build(store_uri: str, **_: Any) -> KeepingStore:
        if without_credentials(store_uri) != store_uri:
            raise RegistryError(
                f"mlflow.yml has a password in the address of {without_credentials(store_uri)}, which is printed; "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment instead"
            )
        creds = utils._get_rest_store(store_uri).get_host_creds
        return KeepingStore(creds, Outbox(folder, store_uri))

    for scheme in ("http", "https"):
        utils._tracking_store_registry.register(scheme, build)
    # A store that was made before is of another folder, or keeps nothing.
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()


def find_store() -> KeepingStore | None:
    """Return the store MLflow tracks to if it is one that keeps, else None."""
    if not str(mlflow.get_tracking_uri()).startswith("http"):
        return None
    store = utils._get_store()
    return store if isinstance(store, KeepingStore) else None


class KeepingStore(RestStore):  # type: ignore[misc]
    """A server's runs; requests are kept in order while it is away, and a run can even begin then."""

    def __init__(self, get_host_creds: Any, outbox: Outbox) -> None:
        super().__init__(get_host_creds)
        self.outbox = outbox
        self._known: dict[tuple[str, str], Any] = {}
        self._experiments: dict[str, str] = {}
        self._is_behind = False
        self._is_sending = False
        self._quiet_until = 0.0
        self._lock = RLock()

    def send(self, name: str, body: dict[str, Any]) -> Any:
        """Send one request as it is, and return the server's answer."""
        return super()._call_endpoint(getattr(service_pb2, name), json.dumps(body))

    def catch_up(self, registrations: bool) -> Any:
        """Send what was kept; see `delivery.deliver`."""
        from moe_compress.registry.delivery import deliver

        with self._lock:
            self._is_sending, self._quiet_until = True, 0.0
            try:
                delivery = deliver(self, registrations)
            finally:
                self._is_sending = False
            self._is_behind = not delivery.is_level
            if delivery.reason and self._is_behind:
                self._quiet_until = time.monotonic() + PAUSE_SECONDS
            return delivery

    def _call_endpoint(self, api: Any, json_body: Any = None, *places: Any, **options: Any) -> Any:
        name = api.DESCRIPTOR.name
        call = partial(super()._call_endpoint, api)
        if name not in WRITES and name not in READS:
            return call(json_body, *places, **options)
        with self._lock:
            if self._is_behind and not self._is_sending and time.monotonic() >= self._quiet_until:
                self.catch_up(registrations=False)
            # Behind, a request may not overtake those that wait.
            if time.monotonic() >= self._quiet_until and (name in READS or not self._is_behind):
                try:
                    answer = call(self.outbox.with_found_ids(json_body), *places, **options)
                    return self._remember(name, json_body, answer)
                except MlflowException as error:
                    if not is_away(error):
                        raise
                    self._be_quiet(error)
            return self._answer(api, name, json.loads(json_body))

    def _be_quiet(self, error: MlflowException) -> None:
        self._quiet_until = time.monotonic() + PAUSE_SECONDS
        if not self._is_behind:
            reason = without_credentials(str(error))
            logger.warning(
                "the tracking server %s does not answer, so what is logged is kept in %s and sent later (%s)",
                self.outbox.server,
                self.outbox.folder,
                reason,
            )
        self._is_behind = True

    def _remember(self, name: str, json_body: str, answer: Any) -> Any:
        if name in READS:
            self._known[name, _place(name, json.loads(json_body))] = answer
        elif name == "CreateRun":
            self._know_run(answer.run)
        return answer

    def _know_run(self, run: Any) -> None:
        self._known["GetRun", run.info.run_id] = service_pb2.GetRun.Response(run=run)

    def _answer(self, api: Any, name: str, body: dict[str, Any]) -> Any:
        """Return what the server would say, and keep what was to be told to it."""
        if name in READS:
            return self._recall(name, body)
        if name == "CreateRun":
            return self._begin_run(body)
        self.outbox.add("request", {"name": name, "body": body})
        answer = api.Response()
        known = self._known.get(("GetRun", body.get("run_id", "")))
        if name == "UpdateRun" and known is not None:
            if "status" in body:
                known.run.info.status = service_pb2.RunStatus.Value(body["status"])
            answer.run_info.CopyFrom(known.run.info)
        return answer

    def _recall(self, name: str, body: dict[str, Any]) -> Any:
        place = _place(name, body)
        if (name, place) not in self._known and name == "GetExperimentByName":
            self._assume_experiment(place)
        if (name, place) not in self._known:
            raise RegistryAwayError(
                f"the tracking server {self.outbox.server} does not answer, so run or experiment {place} cannot be "
                "looked up; try again when it does"
            )
        return self._known[name, place]

    def _assume_experiment(self, name: str) -> None:
        experiment = service_pb2.Experiment(
            experiment_id=uuid.uuid4().hex, name=name, artifact_location="", lifecycle_stage="active"
        )
        self._experiments[experiment.experiment_id] = name
        self._known["GetExperiment", experiment.experiment_id] = service_pb2.GetExperiment.Response(
            experiment=experiment
        )
        self._known["GetExperimentByName", name] = service_pb2.GetExperimentByName.Response(experiment=experiment)

    def _begin_run(self, body: dict[str, Any]) -> Any:
        run_id = uuid.uuid4().hex
        experiment = self._experiments.get(body["experiment_id"])
        self.outbox.promise(run_id)
        self.outbox.add("run", {"promised": run_id, "experiment": experiment, "body": body})
        answer = service_pb2.CreateRun.Response()
        info = answer.run.info
        info.run_id = info.run_uuid = run_id
        info.experiment_id, info.run_name = body["experiment_id"], body.get("run_name", "")
        info.start_time, info.status = int(body["start_time"]), RunStatus.RUNNING
        info.lifecycle_stage = "active"
        self._know_run(answer.run)
        return answer


def _place(name: str, body: dict[str, Any]) -> str:
    key = {"GetRun": "run_id", "GetExperiment": "experiment_id", "GetExperimentByName": "experiment_name"}[name]
    return str(body[key])
