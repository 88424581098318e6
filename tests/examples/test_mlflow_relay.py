"""The relay passes on what MLflow signed about the one alias that counts, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from mlflow.webhooks.delivery import _generate_hmac_signature

PATH = Path(__file__).parents[2] / "examples" / "mlflow_relay.py"
SECRET, TOKEN = "webhook-secret", "github-token"


@pytest.fixture(scope="module")
def module():
    import sys

    spec = importlib.util.spec_from_file_location("mlflow_relay", PATH)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def serve(server):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{server.server_port}"


@pytest.fixture
def github():
    """A server that keeps what it is asked, and refuses once `refuses` is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.server.asked.append((self.path, self.headers["Authorization"], body))
            self.send_response(401 if self.server.refuses else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.refuses = [], False
        server.address = serve(server)
        yield server
        server.shutdown()


@pytest.fixture
def relay(module, github):
    made = module.Relay("base-model", "champion", "org/repo", SECRET, TOKEN, github.address)
    with module.make_server(made, 0) as server:
        yield serve(server)
        server.shutdown()


def message(alias="champion", name="base-model", action="created"):
    data = {"name": name, "alias": alias, "version": "7"}
    return json.dumps({"entity": "model_version_alias", "action": action, "data": data})


def send(address, body, secret=SECRET, sent=None, changed=None):
    sent = str(sent or int(time.time()))
    headers = {
        "X-MLflow-Delivery-Id": "one",
        "X-MLflow-Timestamp": sent,
        "X-MLflow-Signature": _generate_hmac_signature(secret, "one", sent, body),
    }
    request = urllib.request.Request(address, data=(changed or body).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_the_alias_that_counts_starts_the_workflow(relay, github):
    assert send(relay, message()) == 202
    payload = {"event_type": "base-model-changed", "client_payload": {"base": "models:/base-model/7"}}
    assert github.asked == [("/repos/org/repo/dispatches", f"Bearer {TOKEN}", payload)]


@pytest.mark.parametrize("other", [{"alias": "candidate"}, {"name": "else"}, {"action": "deleted"}])
def test_anything_else_is_ignored(relay, github, other):
    assert send(relay, message(**other)) == 200
    assert github.asked == []


@pytest.mark.parametrize(
    "forged",
    [
        {"secret": "guessed"},
        {"sent": int(time.time()) - 3600},
        {"changed": message().replace('"7"', '"8"')},
    ],
)
def test_what_mlflow_did_not_sign_just_now_is_refused(relay, github, forged):
    assert send(relay, message(), **forged) == 401
    assert github.asked == []


def test_what_is_no_message_is_refused(relay, github):
    assert send(relay, "[]") == 400 and send(relay, "{}") == 400
    assert send(relay, "x" * 70_000) == 413
    assert github.asked == []


def test_mlflow_hears_that_github_refused_and_tries_again(relay, github):
    github.refuses = True
    assert send(relay, message()) == 502
