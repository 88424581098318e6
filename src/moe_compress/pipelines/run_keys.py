"""The run keys: a digest of everything a stage's output depends on, chained from stage to stage."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import moe_compress
from moe_compress import methods
from moe_compress.errors import DataError, ParameterError
from moe_compress.evaluation.benchmarks import Benchmark
from moe_compress.gates.decide import parse_gates
from moe_compress.pipelines.benchmarks import benchmarks_of
from moe_compress.pipelines.given_plan import find_given, locate
from moe_compress.pipelines.parameters import DomainParameters, SelectParameters
from moe_compress.pipelines.requests import find_reduction, find_requests, find_sweep_requests
from moe_compress.tuning.settings import TuneSettings
from moe_compress.types import digest_of

_SAME_SUMS = ("mode", "shard")
"""Settings of collecting that do not change what is collected."""


def stage_keys(
    parameters: Mapping[str, Any],
    domain: str,
    base_digest: str,
    demonstrations: Mapping[str, Path],
    domains_folder: Path,
) -> dict[str, str]:
    """Return stage -> sha256 of what its output depends on; a stage's key contains those it builds on.

    Args:
        parameters: the run's parameters as Kedro resolved them.
        domain: the domain compressed for.
        base_digest: digest of the base checkpoint's weights and config.
        demonstrations: domain -> its demonstrations file, of the domain itself or of all that it is a mixture of.
        domains_folder: holds a folder with benchmark and held-out text per task.

    Raises:
        DataError: if a task has no benchmark.
        ParameterError: if a benchmark is not defined.
    """
    own = parameters["domains"][domain]
    tasks = evaluated_tasks(parameters["evaluate"]["tasks"], tuple(demonstrations))
    benchmarks = benchmarks_of(parameters, domain)
    swept = find_sweep_requests(parameters["sweep"]["methods"], parameters["collect"].get("statistics", ()))
    collect, sweep_collect = (
        _collect_keys(parameters, domain, base_digest, demonstrations, requests) for requests in (None, swept)
    )
    given = find_source(parameters, domain)
    made_from = [base_digest, file_digest(locate(given, domain)), source("plans")] if given else collect
    refined = _refined_by(
        parameters,
        domain,
        [collect, parameters["data"], file_digest(domains_folder / domain / "calibration.jsonl")],
    )
    select = digest_of(
        [
            made_from,
            parameters["select"],
            own.get("select"),
            what_sizes_depend_on(parameters, domain),
            source("methods", "pipelines/select.py"),
            *refined,
        ]
    )
    rewrite = digest_of([select, parameters["rewrite"], source("checkpoint", "families", "pipelines/rewrite.py")])
    tune = rewrite
    if settings := what_tunes(parameters):
        texts = [parameters["data"], {name: file_digest(path) for name, path in demonstrations.items()}]
        left_out = [
            _benchmark_digests(domains_folder, tasks),
            {name: one.model_dump() for name, one in benchmarks.items()},
        ]
        tune = digest_of([rewrite, settings, texts, left_out, source("tuning", "pipelines/tune.py")])
    facts = file_digest(Path(moe_compress.__file__).parent / "compatibility" / "engines.yaml")
    compatibility = digest_of([select, facts, source("compatibility")])
    evaluate = {name: value for name, value in parameters["evaluate"].items() if name != "batch_sizes"}
    baseline = digest_of(
        [
            base_digest,
            _benchmark_digests(domains_folder, tasks),
            evaluate,
            {name: benchmark.model_dump() for name, benchmark in benchmarks.items()},
            source("evaluation", "pipelines/evaluate.py", "pipelines/benchmarks.py"),
            versions(*_evaluating(parameters["evaluate"], benchmarks.values())),
        ]
    )
    pruned, candidate = digest_of([rewrite, baseline]), digest_of([tune, baseline])
    probes = digest_of([candidate, parameters["evaluate"], source("pipelines/probe.py")])
    sweep = digest_of(
        [
            *[sweep_collect, baseline],
            *[parameters[block] for block in ("sweep", "select", "rewrite", "statistics_gates", "gates")],
            own,
            source("methods", "checkpoint", "gates", "pipelines/sweep.py", "pipelines/trials.py"),
        ]
    )
    gates = [parameters[block] for block in ("statistics_gates", "gates")]
    run = digest_of([probes, *gates, parameters["release"], own, source("gates", "pipelines/measure.py")])
    return {
        "collect": collect,
        "select": select,
        "rewrite": rewrite,
        "tune": tune,
        "compatibility": compatibility,
        "baseline": baseline,
        "pruned": pruned,
        "candidate": candidate,
        "probes": probes,
        "run": run,
        "sweep_collect": sweep_collect,
        "sweep": sweep,
    }


def _collect_keys(
    parameters: Mapping[str, Any],
    domain: str,
    base_digest: str,
    demonstrations: Mapping[str, Path],
    requests: tuple[str, ...] | None,
) -> str:
    """Return the key of a domain's statistics, or of those of all that it mixes.

    Args:
        parameters: the run's parameters.
        domain: the domain compressed for.
        base_digest: of the base checkpoint.
        demonstrations: domain -> its demonstrations file.
        requests: statistics collected besides those every collection has; None for what each domain asks for.
    """
    keys = {}
    for name, file in demonstrations.items():
        asked = requests_of(parameters, name) if requests is None else requests
        keys[name] = digest_of(
            [
                base_digest,
                file_digest(file),
                parameters["data"],
                {key: value for key, value in parameters["collect"].items() if key not in _SAME_SUMS},
                asked,
                _reduction_of(parameters, name, asked),
                source("collection", "families", "types", "pipelines/data.py", "pipelines/collect.py"),
                versions("torch", "transformers"),
            ]
        )
    return keys.get(domain) or digest_of([keys, source("pipelines/mixture.py")])


def _evaluating(evaluate: Mapping[str, Any], benchmarks: Iterable[Benchmark]) -> tuple[str, ...]:
    """Return the libraries that evaluated numbers depend on."""
    packages = {benchmark.problems.replace("_", "-") for benchmark in benchmarks if benchmark.problems}
    engine = ["vllm"] if evaluate.get("backend") == "vllm" else []
    return ("torch", "transformers", "lm-eval", *sorted(packages), *engine)


def what_tunes(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tuned model depends on besides its texts; nothing where nothing is tuned."""
    settings = parameters["tune"]
    if not settings["steps"]:
        return {}
    further = file_digest(Path(settings["text"])) if settings["text"] else None
    libraries = versions("torch", "transformers", "accelerate", *(["peft"] if settings["kind"] == "lora" else []))
    return {**settings, "text_digest": further, "libraries": libraries}


def _refined_by(parameters: Mapping[str, Any], domain: str, texts: list[Any]) -> list[Any]:
    """Return what a refined plan depends on besides the plan and its texts; nothing where none is refined."""
    chosen = {**parameters["select"], **(parameters["domains"][domain].get("select") or {})}
    if not (chosen.get("refine") or {}).get("swaps"):
        return []
    evaluate = [parameters["evaluate"][name] for name in ("device", "dtype")]
    return [*texts, evaluate, source("evaluation", "pipelines/refine.py"), versions("torch", "transformers")]


def check_selection(parameters: Mapping[str, Any], domain: str) -> None:
    """Check what can be known of a request before the base model is even looked for.

    Raises:
        ParameterError: if the domain's block has another name, budget or gates are not well formed, the plan that
            is given is not there, or a statistic is asked for that cannot be collected.
        DataError: if texts to tune on are not there.
        PluginError: if there is no such method.
    """
    own = DomainParameters.model_validate(parameters["domains"][domain])
    if own.name != domain:
        raise ParameterError(
            f"domains.{domain}.name is '{own.name}'; a block's name is its key, write name: {domain}"
        )
    chosen = own.selection(SelectParameters.model_validate(parameters["select"]))
    methods.check_parameters(chosen.method, chosen.parameters)
    find_given(chosen, domain)
    requests_of(parameters, domain)
    check_tuning(TuneSettings.model_validate(parameters["tune"]))
    if own.of:
        check_mixture(parameters, own, chosen)
    chosen.budget.as_budget()
    parse_gates(own.gate_entries(parameters["gates"]))
    parse_gates(own.gate_entries(parameters["statistics_gates"], "statistics_gates"))


def check_tuning(settings: TuneSettings) -> None:
    """Check what can be known of tuning before anything is loaded.

    Raises:
        DataError: if a file of further texts is named and not there.
        ParameterError: if peft is asked for and not installed.
    """
    if not settings.steps:
        return
    if settings.kind == "lora" and find_spec("peft") is None:
        raise ParameterError(
            "tune.kind is lora, which takes peft, and it is not installed; pip install 'moe-compress[tune]', or "
            "set tune.kind to full"
        )
    if settings.text and not Path(settings.text).is_file():
        raise DataError(f"no file {settings.text}; correct tune.text, or set it to null")


def check_mixture(parameters: Mapping[str, Any], own: DomainParameters, chosen: SelectParameters) -> None:
    """Check that a mixture can be made of its domains.

    Raises:
        ParameterError: if one is no domain, a mixture itself or named twice, if they do not collect what the
            mixture's method needs, if a plan is given or to be refined, or a weight is for a domain that is not
            mixed.
    """
    place = f"domains.{own.name}.of"
    plain = {name for name, block in parameters["domains"].items() if not block.get("of")}
    for domain in own.of:
        if domain not in plain:
            raise ParameterError(
                f"{place} names '{domain}', which is no domain of its own; use some of {', '.join(sorted(plain))}"
            )
        lacking = set(requests_of(parameters, own.name)) - set(requests_of(parameters, domain))
        if lacking:
            raise ParameterError(
                f"{own.name} selects by {chosen.method}, which needs {', '.join(sorted(lacking))}, and domain "
                f"'{domain}' does not collect that; add it to collect.statistics"
            )
    if len(set(own.of)) != len(own.of) or len(own.of) < 2:
        raise ParameterError(f"{place} is {', '.join(own.of)}; name two domains or more, each once")
    if chosen.source is not None:
        raise ParameterError(
            f"select.from gives a plan, and {own.name} makes one of several domains' statistics; carry the plan "
            f"out with apply_{own.of[0]}, or set it to null"
        )
    if chosen.refine.swaps:
        raise ParameterError(
            f"select.refine.swaps is {chosen.refine.swaps}, and swaps better a plan for one domain's text; set it "
            f"to 0 for {own.name}"
        )
    strangers = sorted(set(chosen.weights) - set(own.of)) if isinstance(chosen.weights, Mapping) else []
    if strangers:
        raise ParameterError(
            f"select.weights names '{strangers[0]}', which {own.name} does not mix; use {', '.join(own.of)}"
        )


def find_source(parameters: Mapping[str, Any], domain: str) -> str | None:
    """Return what a domain's `select.from` says; the parameters need not have been validated."""
    blocks = [parameters["select"], (parameters["domains"].get(domain) or {}).get("select")]
    said = [block["from"] for block in blocks if isinstance(block, Mapping) and "from" in block]
    return said[-1] if said else None


def what_sizes_depend_on(parameters: Mapping[str, Any], domain: str) -> list[Any]:
    """Return what a budget of bytes or parameters depends on besides itself: how the checkpoint is written."""
    chosen = {**parameters["select"], **parameters["domains"][domain].get("select", {})}
    budget = chosen.get("budget") or {}
    if budget.get("max_bytes") is None and budget.get("max_parameters") is None:
        return []
    return [parameters["rewrite"], source("checkpoint", "families")]


def requests_of(parameters: Mapping[str, Any], domain: str) -> tuple[str, ...]:
    """Return the statistics that one domain's run collects besides those every collection has."""
    chosen = {**parameters["select"], **parameters["domains"][domain].get("select", {})}
    return find_requests(chosen["method"], parameters["collect"].get("statistics", ()))


def _reduction_of(parameters: Mapping[str, Any], domain: str, requests: tuple[str, ...]) -> list[str]:
    """Return all that a collection's result depends on when a method reduces each layer's sample in it."""
    if "elimination" not in requests:
        return []
    chosen = {**parameters["select"], **parameters["domains"][domain].get("select", {})}
    return [repr(find_reduction(requests, SelectParameters.model_validate(chosen))), source("methods")]


def evaluated_tasks(tasks: Sequence[str], targets: Sequence[str]) -> tuple[str, ...]:
    """Return the tasks to evaluate, sorted: those asked for, and those of the domains compressed for."""
    return tuple(sorted({*targets, *tasks}))


def _benchmark_digests(folder: Path, tasks: tuple[str, ...]) -> list[tuple[str, str, str]]:
    missing = [task for task in tasks if not (folder / task / "benchmark.jsonl").is_file()]
    if missing:
        raise DataError(
            f"no questions to measure '{missing[0]}' with: put {folder / missing[0] / 'benchmark.jsonl'} there, "
            'each line as {"id": "q1", "question": "...", "choices": ["...", "..."], "answer": 0}'
        )
    return [
        (task, file_digest(folder / task / "benchmark.jsonl"), file_digest(folder / task / "heldout.jsonl"))
        for task in tasks
    ]


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes; a file that is not there has the digest `absent`."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"


def versions(*libraries: str) -> dict[str, str]:
    """Return the installed versions of libraries whose numbers a stage's output depends on, `absent` for others."""
    return {library: _version(library) for library in libraries}


def _version(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:  # a stage that needs it says so itself
        return "absent"


@cache
def source(*places: str) -> str:
    """Return a digest of the package's own code that a stage runs, so that a changed method runs again.

    Args:
        places: folders or files of this package.
    """
    root = Path(moe_compress.__file__).parent
    found = [root / place for place in places]
    files = sorted(path for place in found for path in (place.rglob("*.py") if place.is_dir() else [place]))
    return digest_of([[str(path.relative_to(root)), file_digest(path)] for path in files])
