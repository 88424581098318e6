"""Turn MLflow's webhook on a base model's alias into GitHub's `repository_dispatch`, which starts recompression.

MLflow signs what it sends and its body is fixed; GitHub wants another body and a token. This stands between:

    export MLFLOW_WEBHOOK_SECRET=...      # the webhook's secret
    export GITHUB_TOKEN=...               # may write the repository's contents
    python examples/mlflow_relay.py --repository org/repo --model base-model --alias champion --port 8080

MLflow sends to https addresses only, so put it behind whatever ends TLS. The webhook itself:

    mlflow.MlflowClient().create_webhook("recompress", "https://relay.example/", ["model_version_alias.created"],
                                         secret=...)
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY = 64 * 1024
MAX_AGE = 300  # seconds; an older message may be one that somebody recorded
EVENT = {"entity": "model_version_alias", "action": "created"}


@dataclass(frozen=True)
class Relay:
    """What is relayed, to whom, and the two secrets."""

    model: str
    alias: str
    repository: str
    secret: str
    token: str
    github: str = "https://api.github.com"

    def answer(self, headers: Message, body: bytes, now: float) -> tuple[int, str]:
        """Return the status and the word that a message is answered with, after passing it on if it counts."""
        if not self.is_signed(headers, body, now):
            return 401, "no valid signature"
        try:
            message = json.loads(body)
            data = message["data"]
            is_wanted = {name: message[name] for name in EVENT} == EVENT and (data["name"], data["alias"]) == (
                self.model,
                self.alias,
            )
        except (ValueError, KeyError, TypeError):
            return 400, "not a message of MLflow's"
        if not is_wanted:
            return 200, "ignored"
        return self.dispatch(str(data["version"]))

    def is_signed(self, headers: Message, body: bytes, now: float) -> bool:
        """Return whether a message is MLflow's, new, and unchanged on its way."""
        sent, given = (headers.get(f"X-MLflow-{name}", "") for name in ("Timestamp", "Signature"))
        if not sent.isdigit() or abs(now - int(sent)) > MAX_AGE:
            return False
        signed = f"{headers.get('X-MLflow-Delivery-Id', '')}.{sent}.".encode() + body
        digest = hmac.new(self.secret.encode(), signed, hashlib.sha256).digest()
        return hmac.compare_digest(f"v1,{base64.b64encode(digest).decode()}".encode(), given.encode())

    def dispatch(self, version: str) -> tuple[int, str]:
        """Ask GitHub to start the workflow; MLflow tries again where this fails."""
        payload: dict[str, Any] = {
            "event_type": "base-model-changed",
            "client_payload": {"base": f"models:/{self.model}/{version}"},
        }
        request = urllib.request.Request(
            f"{self.github}/repos/{self.repository}/dispatches",
            data=json.dumps(payload).encode(),
            headers={"Authorization": f"Bearer {self.token}", "Accept": "application/vnd.github+json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20):
                return 202, "passed on"
        except urllib.error.URLError as error:
            print(f"GitHub refused: {getattr(error, 'code', error.reason)}", flush=True)
            return 502, "GitHub refused"


def make_server(relay: Relay, port: int) -> ThreadingHTTPServer:
    """Return a server that answers MLflow's messages at every path."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not length.isdigit() or int(length) > MAX_BODY:
                return self.reply(413, "too long")
            status, word = relay.answer(self.headers, self.rfile.read(int(length)), time.time())
            self.reply(status, word)

        def reply(self, status: int, word: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(word)))
            self.end_headers()
            self.wfile.write(word.encode())

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(description="Relay MLflow's webhook to GitHub's repository_dispatch.")
    parser.add_argument("--repository", required=True, help="org/repo")
    parser.add_argument("--model", required=True, help="the registered base model")
    parser.add_argument("--alias", default="champion")
    parser.add_argument("--port", type=int, default=8080)
    given = parser.parse_args()
    secrets = {"secret": os.environ["MLFLOW_WEBHOOK_SECRET"], "token": os.environ["GITHUB_TOKEN"]}
    relay = Relay(model=given.model, alias=given.alias, repository=given.repository, **secrets)
    make_server(relay, given.port).serve_forever()


if __name__ == "__main__":
    main()
