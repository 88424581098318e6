"""What happens around a run: its keys are bound to its outputs, and MLflow learns what was run and measured."""

from __future__ import annotations

import time
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import settings
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node
from pydantic import BaseModel

from moe_compress.errors import ParameterError


class RunKeyHooks:
    """Derives the run's keys from its inputs, and sets them on every keyed dataset before a node runs."""

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Refuse `--params` that no stage knows.

        Raises:
            ParameterError: naming the parameter.
        """
        given = context.config_loader.runtime_params or {}
        if not given:
            return
        loader = OmegaConfigLoader(
            context.config_loader.conf_source, env=context.env, **settings.CONFIG_LOADER_ARGS
        )
        known = {*loader["parameters"], "base_model"}
        for name in given:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ParameterError(
                    f"--params names '{name}', which no stage knows{hint}; use one of {', '.join(sorted(known))}"
                )

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any]
    ) -> None:
        """Bind each domain's keys to the datasets in its namespace.

        Raises:
            MoeCompressError: if the base checkpoint or the demonstrations are not there to take digests of.
        """
        from moe_compress.pipelines.run_keys import stage_keys

        names = pipeline.datasets()
        for domain in sorted({name.partition(".run_keys")[0] for name in names if name.endswith(".run_keys")}):
            keys = stage_keys(
                plain(catalog["parameters"].load()),
                domain,
                catalog["base_model"].load().identity,
                catalog[f"{domain}.demonstration_rows"].path,
                catalog["domains_folder"].load(),
            )
            for name in names:
                dataset = catalog.get(name) if name.startswith(f"{domain}.") else None
                if dataset is not None and hasattr(dataset, "bind"):
                    dataset.bind(keys)


class TrackingHooks:
    """Tells MLflow the run's parameters in full, its code's commit, and how long each node took."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any]
    ) -> None:
        """Log flattened parameters; kedro-mlflow logs a typed parameter as one string."""
        import mlflow

        from moe_compress.registry.tracking import log_run, run_provenance

        if mlflow.active_run() is None:
            return
        parameters = plain(catalog["parameters"].load())
        used = {name.removeprefix("params:").partition(".")[0] for name in pipeline.datasets()}
        log_run(
            params={name: value for name, value in parameters.items() if name in used},
            metrics={},
            tags={**run_provenance(Path.cwd()), "env": run_params.get("env") or "local"},
        )

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        self._started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Log the node's seconds."""
        import mlflow

        seconds = time.perf_counter() - self._started.pop(node.name)
        if mlflow.active_run() is not None:
            mlflow.log_metric(f"seconds.{node.name}", seconds)


def plain(value: Any) -> Any:
    """Return parameters with typed blocks turned back into dictionaries."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value
