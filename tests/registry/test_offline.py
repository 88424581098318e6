"""A server that is away: runs begin, log and end against what is kept, and MLflow's own server takes it later."""

import os
import shutil
import socket
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import mlflow
import pytest
from filelock import FileLock
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2

from moe_compress.errors import RegistryAwayError, RegistryError
from moe_compress.registry.client import DEFAULTS, is_away, prepare_environment, without_credentials
from moe_compress.registry.delivery import PROMISED_TAG, finish_or_keep, register_or_keep, send_kept
from moe_compress.registry.offline import find_store, keep_what_cannot_be_sent
from moe_compress.registry.tracking import log_dataset_digest, log_run, log_step
from moe_compress.registry.versions import resolve

TAGS = {"run_key": "a1b2", "candidate_weights_digest": "c3d4"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr("moe_compress.registry.offline.PAUSE_SECONDS", 0.0)


@contextmanager
def keeping(folder, uri=None):
    """Track to an address where nobody listens, or to a given server, through a store that keeps."""
    before = mlflow.get_tracking_uri()
    with socket.socket() as unused, pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_EXPERIMENT_ID", raising=False)
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        unused.bind(("127.0.0.1", 0))  # bound and not listening, so that nobody else can take it
        keep_what_cannot_be_sent(folder)
        mlflow.set_tracking_uri(uri or f"http://127.0.0.1:{unused.getsockname()[1]}")
        try:
            yield find_store()
        finally:
            while mlflow.active_run() is not None:
                mlflow.end_run()
            mlflow.set_tracking_uri(before)


def track_away(tmp_path):
    """Track a whole run while its server is away; returns where it is kept."""
    page = tmp_path / "report.html"
    page.write_text("<html></html>")
    with keeping(tmp_path / "away") as store:
        mlflow.set_experiment("kept")
        with mlflow.start_run(run_name="night"):
            log_run({"select": {"method": "reap"}}, {"share_kept": 0.9}, {"gates_passed": "true"}, [page])
            log_dataset_digest("medical", "0123" * 16, "data/medical", "calibration")
            log_step({"loss": 2.0}, step=1)
            log_step({"loss": 1.0}, step=2)
            with mlflow.start_run(run_name="nested", nested=True):
                pass
        return store.outbox


def move(outbox, store):
    """Make what one server could not take wait for another."""
    shutil.copytree(outbox.folder, store.outbox.folder, dirs_exist_ok=True)


def find_kept():
    return mlflow.search_runs(experiment_names=["kept"], output_format="list")


def test_a_run_begun_while_the_server_is_away_arrives_whole(server, tmp_path):
    uri = mlflow.get_tracking_uri()
    outbox = track_away(tmp_path)
    kinds = [outbox.read(path)["kind"] for path in outbox.entries()]
    assert kinds[0] == "run" and "artifact" in kinds and outbox.read(outbox.entries()[-1])["name"] == "UpdateRun"
    with keeping(tmp_path / "back", uri) as store:
        move(outbox, store)
        delivery = send_kept()
        assert (delivery.sent, delivery.left, delivery.refused) == (len(kinds), [], [])
        nested, run = find_kept()
        assert nested.data.tags["mlflow.parentRunId"] == run.info.run_id
        assert (run.info.run_name, run.info.status) == ("night", "FINISHED")
        assert run.data.params == {"select.method": "reap"}
        assert run.data.metrics == {"share_kept": 0.9, "loss": 1.0}
        assert run.data.tags["gates_passed"] == "true"
        assert [each.dataset.name for each in run.inputs.dataset_inputs] == ["medical"]
        assert [found.path for found in mlflow.MlflowClient().list_artifacts(run.info.run_id)] == ["report.html"]
        assert len(mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")) == 2
        # The same again, as if the answers to the creations had been lost: still these two.
        move(outbox, store)
        assert send_kept().left == []
        _, again = find_kept()
        assert again.info.run_id == run.info.run_id and len(again.data.tags[PROMISED_TAG]) == 32
        assert send_kept() is None


def test_what_the_server_refuses_holds_up_nothing(server, tmp_path):
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store, mlflow.start_run() as run:
        mlflow.log_param("method", "reap")
        changed = {"run_id": run.info.run_id, "key": "method", "value": "easy_ep"}
        store.outbox.add("request", {"name": "LogParam", "body": changed})
        store.outbox.add("artifact", {"run_id": run.info.run_id, "path": str(tmp_path / "gone.html")})
        store.outbox.add("request", {"name": "SetTag", "body": {**changed, "key": "late", "value": "yes"}})
        delivery = send_kept()
        assert (delivery.sent, delivery.left) == (1, [])
        assert "Changing param values is not allowed" in delivery.refused[0]
        assert "gone.html was to be an artifact" in delivery.refused[1]
        assert len(list((store.outbox.folder / "refused").iterdir())) == 2
        assert mlflow.get_run(run.info.run_id).data.tags["late"] == "yes"


@contextmanager
def gatekeeper(status, body):
    """Yield the address of what stands before a server and answers every request alike."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (401, b"You are not authenticated"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "the token has expired"}'),
        (404, b"<html>404 page not found</html>"),
    ],
)
def test_who_is_not_let_in_loses_nothing_that_is_kept(tmp_path, checkpoint, status, body):
    with gatekeeper(status, body) as uri, keeping(tmp_path, uri) as store:
        store.outbox.promise("0" * 32)
        creation = {"experiment_id": "1", "start_time": 1}
        store.outbox.add("run", {"promised": "0" * 32, "experiment": None, "body": creation})
        delivery = send_kept()
        assert (delivery.refused, len(delivery.left)) == (
            [],
            1,
        ) and "could not create the kept run" in delivery.reason
        store.outbox.entries()[0].unlink()
        place = {"model_name": "moe-kept", "folder": str(checkpoint), "alias": "candidate", "run_id": "1" * 32}
        store.outbox.add("artifact", {"run_id": "1" * 32, "path": str(checkpoint / "config.json")})
        store.outbox.add("registration", {**place, "tags": TAGS})
        delivery = send_kept()
        assert (delivery.refused, delivery.registrations, len(delivery.left)) == ([], ["moe-kept"], 2)


def test_what_belongs_to_a_refused_run_is_refused_too(server, tmp_path, checkpoint):
    page = tmp_path / "report.html"
    page.write_text("<html></html>")
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store:
        store.outbox.promise("2" * 32)
        creation = {"experiment_id": "404404", "start_time": 1}  # an experiment that is gone
        place = {"model_name": "moe-lost", "folder": str(checkpoint), "alias": "candidate", "run_id": "2" * 32}
        tag = {"run_id": "2" * 32, "key": "late", "value": "yes"}
        store.outbox.add("run", {"promised": "2" * 32, "experiment": None, "body": creation})
        store.outbox.add("request", {"name": "SetTag", "body": tag})
        store.outbox.add("artifact", {"run_id": "2" * 32, "path": str(page)})
        store.outbox.add("registration", {**place, "tags": TAGS})
        delivery = send_kept()
        assert (len(delivery.refused), delivery.left) == (4, [])
        assert delivery.refused_registrations == ["moe-lost"]


def test_a_request_the_server_refuses_is_not_kept(server, tmp_path):
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store, mlflow.start_run():
        log_run({"a": 1}, {}, {})
        with pytest.raises(RegistryError, match="Changing param values is not allowed"):
            log_run({"a": 2}, {}, {})
        assert store.outbox.entries() == []


def test_while_anything_waits_nothing_overtakes_it(tmp_path):
    outbox = track_away(tmp_path)
    with keeping(tmp_path / "away"):
        assert send_kept() is None  # another address, another folder
    entries = [outbox.read(path) for path in outbox.entries()]
    metrics = [metric for entry in entries for metric in entry.get("body", {}).get("metrics", ())]
    assert [int(metric["step"]) for metric in metrics if metric["key"] == "loss"] == [1, 2]


def test_a_run_nobody_knows_cannot_be_looked_up_while_the_server_is_away(tmp_path):
    with keeping(tmp_path), pytest.raises(RegistryAwayError, match=r"does not answer, so run .* try again"):
        mlflow.get_run("0" * 32)


def test_a_registration_waits_for_the_registry(server, tmp_path, checkpoint):
    uri = mlflow.get_tracking_uri()
    with keeping(tmp_path / "away") as store:
        mlflow.set_experiment("kept")
        with mlflow.start_run():
            assert register_or_keep("moe-kept", checkpoint, TAGS, "candidate") is None
        outbox = store.outbox
        away = send_kept()
        assert away.registrations == ["moe-kept"] and not away.is_level and "127.0.0.1" in away.reason
    with keeping(tmp_path / "back", uri) as store:
        move(outbox, store)
        assert send_kept().registered == ["moe-kept version 1 (alias candidate)"]
        assert mlflow.pyfunc.load_model("models:/moe-kept@candidate").predict(["Answer :"])


def test_an_earlier_registration_does_not_take_the_alias_back(server, tmp_path, checkpoint):
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store, mlflow.start_run() as run:
        kept = {
            "model_name": "moe-order",
            "folder": str(checkpoint),
            "alias": "candidate",
            "run_id": run.info.run_id,
        }
        store.outbox.add("registration", {**kept, "tags": {"run_key": "early"}})
        version = register_or_keep("moe-order", checkpoint, {"run_key": "late"}, "candidate")
        assert version.version == "2" and send_kept() is None
        finish_or_keep(version, "candidate")
        assert resolve("moe-order", "candidate").tags["run_key"] == "late"
        # One that cannot be sent yet has the new one wait behind it.
        store.outbox.promise("0" * 32)
        store.outbox.add("registration", {**kept, "run_id": "0" * 32, "tags": {"run_key": "later"}})
        assert register_or_keep("moe-order", checkpoint, {"run_key": "latest"}, "candidate") is None
        assert [entry["tags"]["run_key"] for entry in store.outbox.contents()] == ["later", "latest"]
        # Another model's goes ahead.
        assert register_or_keep("moe-free", checkpoint, TAGS, "candidate").version == "1"


def test_a_kept_registration_waits_behind_an_earlier_one_of_its_model(server, tmp_path, checkpoint):
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store, mlflow.start_run() as run:
        store.outbox.promise("0" * 32)
        kept = {"folder": str(checkpoint), "alias": "candidate"}
        for name, run_id, key in (
            ("moe-queue", "0" * 32, "early"),
            ("moe-queue", run.info.run_id, "late"),
            ("moe-other", run.info.run_id, "late"),
        ):
            store.outbox.add(
                "registration", {**kept, "model_name": name, "run_id": run_id, "tags": {"run_key": key}}
            )
        delivery = send_kept()
        assert delivery.registered == ["moe-other version 1 (alias candidate)"]
        assert delivery.registrations == ["moe-queue", "moe-queue"]
        store.outbox.fulfil("0" * 32, run.info.run_id)
        assert len(send_kept().registered) == 2
        assert resolve("moe-queue", "candidate").tags["run_key"] == "late"


def test_a_refused_registration_is_told_apart(server, tmp_path, checkpoint):
    with keeping(tmp_path, mlflow.get_tracking_uri()) as store, mlflow.start_run() as run:
        kept = {"model_name": "moe-refused", "alias": "candidate", "run_id": run.info.run_id}
        store.outbox.add("registration", {**kept, "folder": str(tmp_path / "gone"), "tags": TAGS})
        store.outbox.add("artifact", {"run_id": run.info.run_id, "path": str(tmp_path / "gone.html")})
        delivery = send_kept()
        assert (len(delivery.refused), delivery.refused_registrations) == (2, ["moe-refused"])


def test_a_password_in_mlflow_yml_is_refused(tmp_path):
    with (
        pytest.raises(RegistryError, match=r"a password in the address of http://127\.0\.0\.1:1,.*_PASSWORD"),
        keeping(tmp_path, "http://ann:secret@127.0.0.1:1"),
    ):
        pass


def test_while_another_process_sends_what_was_kept_waits(tmp_path):
    with keeping(tmp_path) as store:
        store.outbox.add("artifact", {"run_id": "r", "path": "p"})
        with FileLock(store.outbox.folder / ".lock", is_singleton=False):
            delivery = store.catch_up(registrations=False)
        assert (len(delivery.left), delivery.sent) == (1, 0) and "another process is sending" in delivery.reason


def test_without_a_server_nothing_is_kept(store, checkpoint, monkeypatch):
    assert find_store() is None and send_kept() is None
    with mlflow.start_run():
        assert register_or_keep("moe-here", checkpoint, TAGS, "candidate").version == "1"

        def broken(*_, **__):
            raise MlflowException("database is locked")

        monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", broken)
        with pytest.raises(RegistryAwayError, match="database is locked"):
            register_or_keep("moe-here", checkpoint, TAGS, "candidate")
        monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", broken)
        with pytest.raises(RegistryAwayError, match="database is locked"):
            log_run({}, {}, {}, [checkpoint / "config.json"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MlflowException("no connection"), True),
        (MlflowException("soon", error_code=databricks_pb2.TEMPORARILY_UNAVAILABLE), True),
        (MlflowException("busy", error_code=databricks_pb2.REQUEST_LIMIT_EXCEEDED), True),
        (MlflowException("who", error_code=databricks_pb2.UNAUTHENTICATED), False),
        (MlflowException.invalid_parameter_value("wrong"), False),
    ],
)
def test_which_errors_say_that_a_server_is_away(error, expected):
    assert is_away(error) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:pw@db:5432/x", "postgresql://db:5432/x"),
        ("postgresql+psycopg2://mlflow:ab/cd+e@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        ("postgresql://ann:12/cd@db/x", "postgresql://db/x"),
        ("https://ann:p@ss@host/x", "https://host/x"),
        ("mysql://ann:a/b@c@db/x", "mysql://db/x"),
        ("https://ann:a/b@host/x", "https://host/x"),
        ("https://ann@host/team@x", "https://host/team@x"),
        ("https://ann:pw@host:5000/team@x", "https://host:5000/team@x"),
        ("http://127.0.0.1:5000/team@x and ann@x.org", "http://127.0.0.1:5000/team@x and ann@x.org"),
        ("mlflow-artifacts://host:5000/a@b", "mlflow-artifacts://host:5000/a@b"),
        ("no answer at http://host:5000: ask ann@x.org", "no answer at http://host:5000: ask ann@x.org"),
        ("hf://org/model@revision or s3://bucket/a:b@c", "hf://org/model@revision or s3://bucket/a:b@c"),
        ("models:/name@alias", "models:/name@alias"),
        ("sqlite:////home/ann@work/a:b@c.db", "sqlite:////home/ann@work/a:b@c.db"),
        ("postgresql://db:5432/x,https://ann:pw@host", "postgresql://db:5432/x,https://host"),
    ],
)
def test_credentials_are_taken_out_of_addresses_and_nothing_else_is(text, expected):
    assert without_credentials(text) == expected


def test_an_address_loses_its_password_and_the_users_patience_stays():
    with pytest.MonkeyPatch.context() as patch:
        for name in (*DEFAULTS, "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
            patch.setenv(name, "before")
        patch.delenv("AWS_MAX_ATTEMPTS")
        patch.setenv("MLFLOW_TRACKING_URI", "https://ann:p%40w@mlflow.example.com/x")
        prepare_environment()
        assert os.environ["MLFLOW_TRACKING_URI"] == "https://mlflow.example.com/x"
        assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("ann", "p@w")
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "before"
        assert os.environ["AWS_MAX_ATTEMPTS"] == DEFAULTS["AWS_MAX_ATTEMPTS"]
        patch.setenv("MLFLOW_TRACKING_URI", "postgresql://ann:pw@database/x")
        prepare_environment()
        assert os.environ["MLFLOW_TRACKING_URI"] == "postgresql://ann:pw@database/x"
