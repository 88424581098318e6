"""The results table: every method on every domain, measured with one model and written as a page of the docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.pipelines.data import number_rows, text_of
from moe_compress.pipelines.parameters import CollectParameters
from moe_compress.pipelines.results_plans import ResultsParameters, plan_rows, split_rows
from moe_compress.types import (
    CheckpointReference,
    Demonstrations,
    ExpertStatistics,
    LeftOut,
    Measurement,
    Trial,
    digest_of,
)


def collect_domains(
    base_model: CheckpointReference,
    domains_folder: Path,
    collect: CollectParameters,
    parameters: ResultsParameters,
) -> dict[str, ExpertStatistics]:
    """Return domain -> statistics of its demonstrations, all that the rows need."""
    from moe_compress.collection.requests import resolve_requests
    from moe_compress.datasets import RowsDataset
    from moe_compress.pipelines.collect import collect_domains as collect_pass

    rows, _ = split_rows(parameters)
    requests = resolve_requests(*(methods.load(row.method).STATISTICS for row in rows.values()))
    found = {}
    for domain in parameters.domains:
        table = number_rows(list(RowsDataset(str(domains_folder / domain / "demonstrations.jsonl")).load()))
        ids, texts = tuple(row["id"] for row in table), tuple(map(text_of, table))
        found[domain] = Demonstrations(domain, ids, texts, digest_of(table))
    lineage = base_model.as_provenance()
    return collect_pass(
        base_model, collect, found, dict.fromkeys(found, lineage), dict.fromkeys(found, requests), None
    )


def measure_trials(
    base_model: CheckpointReference,
    trials: Sequence[Trial],
    domains_folder: Path,
    folder: Path,
    parameters: ResultsParameters,
) -> list[Measurement]:
    """Return what was measured, in the order of `results_runs.list_jobs`; a run that was stopped goes on."""
    from moe_compress.pipelines.results_runs import Setting, list_jobs, measure_jobs, read_measurements

    limits = parameters.benchmark_limit, parameters.heldout_limit, parameters.seed
    setting = Setting(base_model, domains_folder, *limits, folder)
    jobs = list_jobs(trials, parameters)
    measure_jobs(setting, jobs, parameters.workers)
    return read_measurements(setting, jobs)


def write_page(
    trials: Sequence[Trial],
    left_out: Sequence[LeftOut],
    measured: Sequence[Measurement],
    domains_folder: Path,
    parameters: ResultsParameters,
) -> None:
    """Write the page, its figures and its numbers."""
    from moe_compress.evaluation.tasks import read_items
    from moe_compress.reporting.results_page import Background, write_results_page
    from moe_compress.reporting.results_table import ResultsTable

    rest = iter(measured)
    base = {domain: next(rest) for domain in parameters.domains}
    found = {(trial.key, domain): next(rest) for trial in trials for domain in trial.domains}
    chance = {}
    for domain in parameters.domains:
        items = read_items(domains_folder / domain / "benchmark.jsonl")
        chance[domain] = sum(1 / len(item.choices) for item in items) / len(items)
    plans = {trial.key: trial.plan for trial in trials}
    layout = trials[0].plan.layout
    background = Background(
        num_parameters=next(iter(base.values())).num_parameters,
        num_layers=len(layout.layers),
        num_experts=max(layout.num_experts),
        top_k=layout.top_k,
        num_items=len(next(iter(base.values())).right),
        num_texts=parameters.heldout_limit,
        command=describe_command(parameters),
    )
    table = ResultsTable(
        base, found, plans, chance, left_out, compared=parameters.compared_method, seed=parameters.seed
    )
    write_results_page(table, background, Path(parameters.page))


def describe_command(parameters: ResultsParameters) -> str:
    """Return the command that asks as many questions and texts; lists are conf's, as commas would end them."""
    limits = {name: getattr(parameters, name) for name in ("benchmark_limit", "heldout_limit", "seed")}
    given = ",".join(f"results.{name}={'null' if value is None else value}" for name, value in limits.items())
    return f"kedro run --pipelines=results --params={given}"


def create_pipeline() -> Pipeline:
    """Return the pipeline: (base model, domains) -> the results page."""
    return Pipeline(
        [
            Node(
                collect_domains,
                ["base_model", "domains_folder", "params:collect", "params:results"],
                "results_statistics",
                name="collect_domains",
            ),
            Node(
                plan_rows,
                ["results_statistics", "params:results"],
                ["results_trials", "results_left_out"],
                name="plan_trials",
            ),
            Node(
                measure_trials,
                ["base_model", "results_trials", "domains_folder", "results_folder", "params:results"],
                "results_measured",
                name="measure_trials",
            ),
            Node(
                write_page,
                ["results_trials", "results_left_out", "results_measured", "domains_folder", "params:results"],
                None,
                name="write_results_page",
            ),
        ]
    )
