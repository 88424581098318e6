"""Talk to MLflow so that a refusal comes back as one sentence, without the credentials of its address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moe_compress.errors import RegistryError

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def without_credentials(text: str) -> str:
    """Return the text with `user:password@` taken out of every address in it."""
    return _CREDENTIALS.sub("", text)


def active_run_id() -> str | None:
    """Return the id of the run that is active in this thread, or None; no run is started."""
    import mlflow

    run = mlflow.active_run()
    return None if run is None else str(run.info.run_id)


@contextmanager
def mlflow_client(doing: str) -> Iterator[Any]:
    """Yield an `MlflowClient` of the configured store.

    Args:
        doing: what is attempted, for the message: `register 'moe-medical'`.

    Raises:
        RegistryError: in place of whatever MLflow raises inside the block.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        yield mlflow.MlflowClient()
    except MlflowException as error:
        store = without_credentials(mlflow.get_registry_uri() or "")
        reason = without_credentials(str(error)).rstrip(".")
        raise RegistryError(f"could not {doing} in {store}: {reason}; check mlflow.yml and try again") from error
