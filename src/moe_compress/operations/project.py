"""The project as a run sees it: parameters validated, catalog built, MLflow pointed at its store."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.project import settings
from kedro.framework.session import KedroSession
from kedro.utils import find_kedro_project
from rich.console import Console
from rich.logging import RichHandler

from moe_compress.errors import ParameterError
from moe_compress.pipelines.parameters import plain


@dataclass(frozen=True)
class Project:
    """A project's parameters as plain values, and its catalog."""

    parameters: Mapping[str, Any]
    catalog: Any

    def own(self, domain: str) -> Mapping[str, Any]:
        """Return a domain's block.

        Raises:
            ParameterError: if there is none.
        """
        domains = self.parameters["domains"]
        if domain not in domains:
            close = get_close_matches(domain, domains, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ParameterError(f"no domain '{domain}'{hint}; there are {', '.join(sorted(domains))}")
        return dict(domains[domain])

    def model_name(self, name: str) -> str:
        """Return the registered model of a domain, or the name itself where it is no domain's."""
        own = self.parameters["domains"].get(name)
        return str(own["registered_model"]) if own else name


def open_project(env: str | None = None, params: Mapping[str, Any] | None = None) -> Project:
    """Return the project around the working directory, which becomes the project's folder.

    Args:
        env: the environment under `conf/`.
        params: parameters given on the command line.

    Raises:
        ParameterError: if there is no such environment.
    """
    context = open_context(env, params)
    return Project(plain(context.params), context.catalog)


def open_context(env: str | None = None, params: Mapping[str, Any] | None = None) -> KedroContext:
    """Return Kedro's context of the project, with MLflow pointed at its store; see `open_project`."""
    root = find_kedro_project(Path.cwd()) or Path.cwd()
    os.chdir(root)  # the tracking store and the data are relative to it
    check_environment(root / settings.CONF_SOURCE, env or os.getenv("KEDRO_ENV"))
    log_to_stderr()
    session = KedroSession.create(project_path=root, env=env, runtime_params=dict(params or {}))
    return session.load_context()


def check_environment(conf: Path, env: str | None) -> None:
    """Check that an environment is there; without it MLflow would be pointed at a store of its own choice.

    Raises:
        ParameterError: if it is not.
    """
    if env and not (conf / env).is_dir():
        known = ", ".join(sorted(path.name for path in conf.iterdir() if path.is_dir()))
        raise ParameterError(f"no environment '{env}' in {conf}; there are {known}")


def log_to_stderr() -> None:
    """Leave standard output to what a command finds: another program may read it."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, RichHandler):
            handler.console = Console(stderr=True)
