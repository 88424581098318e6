"""What happens around a run: its keys are bound to its outputs, and MLflow learns what was run and measured."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Iterable, Mapping, Set
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.config import OmegaConfigLoader
from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.framework.project import settings
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from moe_compress.errors import ParameterError
from moe_compress.pipelines.parameters import plain
from moe_compress.pipelines.run_lock import RunLock
from moe_compress.registry.client import active_run_id
from moe_compress.registry.tracking import end_killed_run, flatten_parameters

if TYPE_CHECKING:
    from moe_compress.datasets.keyed import KeyedDataset


class RunKeyHooks:
    """Derives the run's keys from its inputs, and sets them on every keyed dataset before a node runs."""

    def __init__(self) -> None:
        self._lock = RunLock()
        self._is_fresh = False
        self._keyed: dict[str, KeyedDataset] = {}

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
        configured = loader["parameters"]
        check_given(given, {*configured, "base_model"})
        if isinstance(domains := given.get("domains"), Mapping):
            # A block that conf/ has only in another environment may be given as a whole.
            whole = {
                name for name, block in domains.items() if isinstance(block, Mapping) and block.keys() >= _WHOLE
            }
            check_given(domains, {*configured.get("domains", {}), *whole}, "domains.")

    @hook_impl
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Bind the domain's keys to the datasets in its namespace.

        Raises:
            MoeCompressError: if the request cannot be met, or there is nothing to take a digest of.
        """
        from moe_compress.pipelines.foresee import foresee_collections

        parameters = plain(catalog["parameters"].load())
        domains = find_domains(pipeline, parameters)
        for domain in domains:
            check_domain(parameters, domain, pipeline)
            if {f"{domain}.registered", f"{domain}.candidate_checkpoint"} & pipeline.all_outputs():
                end_killed_run(self._lock.acquire(domain, active_run_id()))
        foresee_collections(parameters, pipeline, catalog)
        self._keyed = {}
        for domain in domains:
            self._bind(domain, parameters, catalog, describe_command(run_params))
        self._is_fresh = not run_params["only_missing_outputs"]
        if self._is_fresh:
            remove_answers(pipeline, catalog)
            if "collect_folder" in pipeline.inputs():
                from moe_compress.pipelines.collect import remove_resume_points

                remove_resume_points(catalog["collect_folder"].load())

    def _bind(self, domain: str, parameters: dict[str, Any], catalog: DataCatalog, command: str) -> None:
        """Give a domain's datasets its keys, those of other pipelines too: what they hold may become outdated."""
        from moe_compress.datasets.keyed import KeyedDataset
        from moe_compress.pipelines.key_parts import as_keys, find_demonstrations, key_parts
        from moe_compress.pipelines.run_keys import stage_keys

        rows = find_demonstrations(parameters, domain, catalog)
        folder = catalog["domains_folder"].load()
        keys = stage_keys(parameters, domain, catalog["base_model"].load().identity, rows, folder)
        keys |= as_keys(key_parts(parameters, domain, rows, folder))
        for name in names_of(domain):
            value = catalog.get(name)
            if isinstance(value, KeyedDataset):
                self._keyed[name] = value
            if value is not None and hasattr(value, "bind"):
                value.bind({**keys, "command": command})

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Have what was saved count as there, and what was made from its predecessor as missing.

        So nothing old is taken for what goes with something new, wherever a fresh run ends.
        """
        value = self._keyed.get(dataset_name)
        if value is None:
            return
        is_another = self._is_fresh or value.is_outdated
        value.follow_save(data)
        if is_another:
            for name in find_made_from(dataset_name) & self._keyed.keys():
                self._keyed[name].outdate()

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


_WHOLE = {"name", "registered_model"}
"""What a domain's block needs."""


def check_given(given: Iterable[str], known: Set[str], block: str = "") -> None:
    """Check the names that `--params` gives in a block of parameters.

    Args:
        given: the names.
        known: those there are.
        block: what stands before them, with a dot.

    Raises:
        ParameterError: naming the first that is not known.
    """
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" (did you mean '{block}{close[0]}'?)" if close else ""
            raise ParameterError(
                f"--params names '{block}{name}', which no stage knows{hint}; use one of {', '.join(sorted(known))}"
            )


def find_domains(pipeline: Pipeline, parameters: dict[str, Any]) -> tuple[str, ...]:
    """Return the domains a pipeline works for, sorted; none for a pipeline of no domain.

    Raises:
        ParameterError: if it compresses for more than one, because such a run is tracked and reported as one, in
            more processes than one, or from one shard of the statistics.
    """
    namespaces = {name.partition(".")[0] for name in pipeline.datasets()}
    found = tuple(sorted(namespaces & set(parameters.get("domains", {}))))
    made = {f"{domain}.{value}": domain for domain in found for value in ("plan", "sweep", "candidate_checkpoint")}
    plans = sorted({made[name] for name in pipeline.all_outputs() & set(made)})
    if len(plans) > 1:
        raise ParameterError(f"one run compresses for one domain, not for {', '.join(plans)}; run them one by one")
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if plans and processes > 1:
        raise ParameterError(
            f"{processes} processes were started, and only collecting is divided among them; start them with "
            f"--pipelines=collect_{plans[0]}, and then run this in one process"
        )
    shard = parameters.get("collect", {}).get("shard")
    if plans and shard:
        raise ParameterError(
            f"collect.shard is {shard}, and a plan needs all shards; collect each with collect_{plans[0]}, add "
            f"them up with reduce_{plans[0]}, and run this without collect.shard"
        )
    return found


def names_of(domain: str) -> set[str]:
    """Return the names of all values of a domain, in whatever pipeline."""
    from kedro.framework.project import pipelines

    return {name for each in pipelines.values() for name in each.datasets() if name.startswith(f"{domain}.")}


def find_made_from(name: str) -> set[str]:
    """Return the names of all values that are made from one, in whatever pipeline and however many steps."""
    from kedro.framework.project import pipelines

    takers = [each for each in pipelines.values() if name in each.datasets()]
    return {made for each in takers for made in each.from_inputs(name).all_outputs()}


def check_domain(parameters: dict[str, Any], domain: str, pipeline: Pipeline) -> None:
    """Check all that can be known of a domain's request before its files are looked at.

    Raises:
        MoeCompressError: if the request cannot be met.
    """
    from moe_compress.pipelines.benchmarks import check_evaluation
    from moe_compress.pipelines.request_checks import check_selection

    check_selection(parameters, domain)
    check_origin(parameters, domain, pipeline)
    check_parts(parameters, domain, pipeline)
    if f"{domain}.candidate_evaluation" in pipeline.all_outputs():
        check_evaluation(parameters, domain)


def check_parts(parameters: dict[str, Any], domain: str, pipeline: Pipeline) -> None:
    """Check that a mixture's pipeline takes the domains that its parameters name.

    What part of the pipeline takes nothing of any domain, such as the baseline alone, is any mixture's.

    Raises:
        ParameterError: if it was built for others, because --params or another environment name them differently.
    """
    named = set(parameters["domains"][domain].get("of") or ())
    taken = {name for node in pipeline.nodes if node.namespace == domain for name in node.inputs}
    built = {name.partition(".")[0] for name in taken if name.endswith((".statistics", ".demonstrations"))}
    if named and built and named != built:
        raise ParameterError(
            f"domains.{domain}.of is {', '.join(sorted(named))}, but the pipeline was built for "
            f"{', '.join(sorted(built))}, as another file of conf/ says; give each mixture a name of its own"
        )


def check_origin(parameters: dict[str, Any], domain: str, pipeline: Pipeline) -> None:
    """Check that a pipeline makes a plan from statistics where none is given.

    Raises:
        ParameterError: if one is given, which `kedro run` heeds by itself.
    """
    from moe_compress.pipelines.run_keys import find_source

    if find_source(parameters, domain) and {f"{domain}.plan", f"{domain}.statistics"} <= pipeline.all_outputs():
        raise ParameterError(
            f"select.from gives the plan, and this pipeline collects statistics to make one; run apply_{domain}"
        )


def describe_command(run_params: dict[str, Any]) -> str:
    """Return the command that starts this run again."""
    words = ["kedro", "run", f"--pipelines={','.join(run_params.get('pipeline_names') or [])}"]
    if run_params.get("env"):
        words.append(f"--env={run_params['env']}")
    given = flatten_parameters(run_params.get("runtime_params") or {})
    if given:
        words.append("--params=" + ",".join(f"{name}={value}" for name, value in given.items()))
    return shlex.join(words)


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
        """Log flattened parameters; kedro-mlflow logs a typed parameter as one string."""
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
