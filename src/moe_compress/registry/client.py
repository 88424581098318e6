"""Talk to MLflow so that a refusal comes back as one sentence, without the credentials of its address."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote, urlsplit

from moe_compress.errors import RegistryAwayError, RegistryError

_CREDENTIALS = re.compile(
    r"""(?<=://)
    (?: [^/\s]*  # up to the last @ before the first slash
      # A database's driver takes a slash in a password as it is; what a web address has before one can be a port.
      | (?! (?: (?<=http://) | (?<=https://) | (?<=mlflow-artifacts://) ) [^/:@\s]*:\d+/ )
        [^/:@\s]*: (?: (?!://) \S )*
    )@""",
    re.VERBOSE,
)

DEFAULTS = {
    # How long to wait for servers; MLflow's own defaults wait for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "AWS_MAX_ATTEMPTS": "3",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "true",
}
"""What MLflow is told unless the environment says otherwise."""


def without_credentials(text: str) -> str:
    """Return the text with `user:password@` taken out of every address in it."""
    return _CREDENTIALS.sub("", text)


def prepare_environment() -> None:
    """Set MLflow's defaults, and move a server's `user:password@` to the two variables MLflow sends them from.

    MLflow prints the address it tracks to, so that a password may not stay in it.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it announces its start and end
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.username is not None:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        os.environ["MLFLOW_TRACKING_URI"] = without_credentials(uri)


def active_run_id() -> str | None:
    """Return the id of the run that is active in this thread, or None; no run is started."""
    import mlflow

    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


def is_away(error: Exception) -> bool:
    """Return whether what MLflow raised says that a server is out of reach, busy or broken, not that it refused."""
    status: int = getattr(error, "get_http_status_code", lambda: 500)()
    return status >= 500 or status == 429


def is_shut_out(error: BaseException | None) -> bool:
    """Return whether what MLflow raised says that nobody looked at the request.

    That is so where a login has expired, and where a proxy knows no such address.
    """
    status: int = getattr(error, "get_http_status_code", lambda: 500)()
    return status in (401, 403) or getattr(error, "error_code", "") == "ENDPOINT_NOT_FOUND"


@contextmanager
def mlflow_client(doing: str) -> Iterator[Any]:
    """Yield an `MlflowClient` of the configured store.

    Args:
        doing: what is attempted, for the message: `register 'moe-medical'`.

    Raises:
        RegistryAwayError: in place of what MLflow raises inside the block where its server does not answer.
        RegistryError: in place of whatever else MLflow raises there.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield mlflow.MlflowClient()
    except MlflowException as error:
        store = without_credentials(mlflow.get_registry_uri() or "")
        reason = without_credentials(str(error)).rstrip(".")
        kind = RegistryAwayError if is_away(error) else RegistryError
        raise kind(f"could not {doing} in {store}: {reason}; check mlflow.yml and try again") from error
