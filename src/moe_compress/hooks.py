"""What happens around a run: its keys are bound to its outputs, and MLflow learns what was run and measured."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import settings
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from moe_compress.pipelines.parameters import plain
from moe_compress.pipelines.run_checks import check_domain, check_given, find_domains
from moe_compress.pipelines.run_lock import RunLock
from moe_compress.quiet import hold_back
from moe_compress.registry.client import active_run_id
from moe_compress.registry.tracking import end_killed_run, flatten_parameters

if TYPE_CHECKING:
    from moe_compress.pipelines.keyed_values import KeyedValues


class RunKeyHooks:
    """Derives the run's keys from its inputs, and sets them on every keyed dataset before a node runs."""

    def __init__(self) -> None:
        self._lock = RunLock()
        self._values: KeyedValues | None = None

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
        check_given(given, loader["parameters"])

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Bind the domain's keys to the datasets in its namespace.

        Raises:
            MoeCompressError: if the request cannot be met, or there is nothing to take a digest of.
        """
        from moe_compress.pipelines.foresee import foresee_collections
        from moe_compress.pipelines.keyed_values import KeyedValues

        parameters = plain(catalog["parameters"].load())
        domains = find_domains(pipeline, parameters)
        for domain in domains:
            check_domain(parameters, domain, pipeline)
            if {f"{domain}.registered", f"{domain}.candidate_checkpoint"} & pipeline.all_outputs():
                end_killed_run(self._lock.acquire(domain, active_run_id()))
        foresee_collections(parameters, pipeline, catalog)
        is_fresh = not run_params["only_missing_outputs"]
        self._values = KeyedValues(catalog, is_fresh)
        for domain in domains:
            self._values.bind(parameters, domain, describe_command(run_params))
        if is_fresh:
            remove_answers(pipeline, catalog)
            if "collect_folder" in pipeline.inputs():
                from moe_compress.pipelines.collect import remove_resume_points

                remove_resume_points(catalog["collect_folder"].load())

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Have what was saved count as there, and what is made from it as missing where it is another now."""
        if self._values is not None:
            self._values.follow_save(dataset_name, data)

    @hook_impl
    def on_pipeline_error(self) -> None:
        """Let another run of the domain go."""
        self._lock.release()

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Remove what a collection, tuning or evaluation could go on from, now that what came of it is saved."""
        remove_answers(pipeline, catalog)
        if "tune_folder" in pipeline.inputs():
            from moe_compress.pipelines.tune import remove_finished as remove_tuned

            for name in pipeline.all_outputs():
                domain, _, value = name.partition(".")
                if value == "candidate_checkpoint":
                    remove_tuned(catalog["tune_folder"].load() / domain)
        self._lock.release()
        if "collect_folder" in pipeline.inputs():
            from moe_compress.pipelines.collect import remove_resume_points

            remove_resume_points(catalog["collect_folder"].load())


def remove_answers(pipeline: Pipeline, catalog: DataCatalog) -> None:
    """Remove what evaluations of a pipeline's domains could go on from."""
    if "answers_folder" in pipeline.inputs():
        made = (name.partition(".") for name in pipeline.all_outputs())
        for domain in {domain for domain, _, value in made if value.endswith("_evaluation")}:
            shutil.rmtree(catalog["answers_folder"].load() / domain, ignore_errors=True)


def describe_command(run_params: dict[str, Any]) -> str:
    """Return the command that starts this run again."""
    words = ["kedro", "run", f"--pipelines={','.join(run_params.get('pipeline_names') or [])}"]
    if run_params.get("env"):
        words.append(f"--env={run_params['env']}")
    given = flatten_parameters(run_params.get("runtime_params") or {})
    if given:
        words.append("--params=" + ",".join(f"{name}={value}" for name, value in given.items()))
    return shlex.join(words)


class MlflowHooks:
    """kedro-mlflow's hooks without its parameters, which it sends one by one and typed ones as text.

    The plugin's own are disabled in `settings`. It is imported as late as Kedro would, for it loads MLflow.
    """

    @property
    def _plugin(self) -> Any:
        from kedro_mlflow.framework.hooks import mlflow_hook

        return mlflow_hook

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Point MLflow at the store that `conf/base/mlflow.yml` names."""
        # The plugin tells every command that it registers a resolver for names of runs.
        with hold_back("kedro_mlflow", below=logging.WARNING):
            self._plugin.after_context_created(context)

    @hook_impl
    def after_catalog_created(
        self,
        catalog: DataCatalog,
        conf_catalog: Any,
        conf_creds: Any,
        parameters: Any,
        save_version: Any,
        load_versions: Any,
    ) -> None:
        """Name the metrics that a project's own catalog keeps in MLflow."""
        self._plugin.after_catalog_created(
            catalog, conf_catalog, conf_creds, parameters, save_version, load_versions
        )

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Start the run."""
        self._plugin.before_pipeline_run(run_params, pipeline, catalog)

    @hook_impl
    def before_node_run(self, node: Node, catalog: DataCatalog, is_async: bool) -> None:
        """Have the node's thread track in the same run."""
        self._plugin.before_node_run(node, catalog, {}, is_async)

    @hook_impl
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """End the run."""
        self._plugin.after_pipeline_run(run_params, pipeline, catalog)

    @hook_impl
    def on_pipeline_error(
        self, error: Exception, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog
    ) -> None:
        """End the run as failed."""
        self._plugin.on_pipeline_error(error, run_params, pipeline, catalog)


KEPT = "data/09_tracking"
"""Where a project keeps what its tracking server could not take."""


class TrackingHooks:
    """Tells MLflow the run's parameters in full, its code's commit, and what each node took of time and memory."""

    def __init__(self) -> None:
        self._started: dict[str, float] = {}
        self._num_nodes = 0

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Make tracking survive its server, before kedro-mlflow first talks to it."""
        from moe_compress.registry.client import prepare_environment
        from moe_compress.registry.offline import keep_what_cannot_be_sent

        prepare_environment()
        keep_what_cannot_be_sent(context.project_path / KEPT)

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Log the parameters that the pipeline uses under dotted names, all at once."""
        import mlflow

        from moe_compress.registry.tracking import log_run, run_provenance

        if mlflow.active_run() is None:
            return
        parameters = plain(catalog["parameters"].load())
        self._num_nodes = 0
        used = {name.removeprefix("params:").partition(".")[0] for name in pipeline.datasets()}
        log_run(
            # Definitions of benchmarks are hundreds of values, and in the run's keys.
            params={name: value for name, value in parameters.items() if name in used - {"benchmarks"}},
            metrics={},
            tags={**run_provenance(Path.cwd()), "env": run_params.get("env") or "local"},
        )

    @hook_impl
    def before_node_run(self, node: Node) -> None:
        """Start the node's clock."""
        self._started[node.name] = time.perf_counter()

    @hook_impl
    def after_node_run(self, node: Node) -> None:
        """Log the node's seconds, and the most memory that was held so far."""
        from moe_compress.registry.tracking import log_step, peak_memory

        seconds = time.perf_counter() - self._started.pop(node.name)
        self._num_nodes += 1
        log_step({f"seconds.{node.name}": seconds, **peak_memory()}, self._num_nodes)
