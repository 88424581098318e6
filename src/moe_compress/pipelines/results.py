"""The results table: every method on every domain, measured with one model and written as a page of the docs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.pipeline import Node, Pipeline
from pydantic import Field

from moe_compress import methods
from moe_compress.collection.requests import resolve_requests
from moe_compress.pipelines.data import number_rows, text_of
from moe_compress.pipelines.parameters import CollectParameters, Parameters
from moe_compress.types import (
    Budget,
    CheckpointReference,
    CompressionPlan,
    Demonstrations,
    ExpertStatistics,
    digest_of,
)

Key = tuple[str, str, float]


class ResultsParameters(Parameters):
    """What the table holds."""

    domains: tuple[str, ...] = Field(min_length=2)
    fractions_dropped: tuple[float, ...] = (0.5, 0.75)
    compared_method: str = "easy_ep"
    other_limit: int = Field(300, ge=1, description="items per task that is not the plan's own domain")
    heldout_limit: int = Field(100, ge=1)
    seed: int = 42
    page: str = "docs/results/methods.md"


def collect_domains(
    base_model: CheckpointReference,
    domains_folder: Path,
    collect: CollectParameters,
    parameters: ResultsParameters,
) -> dict[str, ExpertStatistics]:
    """Return domain -> statistics of its demonstrations."""
    from moe_compress.datasets import RowsDataset
    from moe_compress.pipelines.collect import collect_domains as collect_pass

    methods.load(parameters.compared_method)
    found = {}
    for domain in parameters.domains:
        rows = number_rows(list(RowsDataset(str(domains_folder / domain / "demonstrations.jsonl")).load()))
        found[domain] = Demonstrations(
            domain, tuple(row["id"] for row in rows), tuple(map(text_of, rows)), digest_of(rows)
        )
    lineage = base_model.as_provenance()
    # What merges cannot be tried by masking a router, so nothing is collected for it.
    scoring = [method for method in map(methods.load, methods.available()) if hasattr(method, "score")]
    requests = resolve_requests(*(method.STATISTICS for method in scoring))
    return collect_pass(
        base_model, collect, found, dict.fromkeys(found, lineage), dict.fromkeys(found, requests), None
    )


def plan_all(
    statistics: Mapping[str, ExpertStatistics], parameters: ResultsParameters
) -> dict[Key, CompressionPlan]:
    """Return (method, domain, fraction dropped) -> plan, for every method whose statistics there are.

    Plans that merge are left out: what they make cannot be had by masking a router.
    """
    plans = {
        (method, domain, fraction): methods.plan(
            method, statistics[domain], Budget(fraction_dropped=fraction), parameters.seed
        )
        for fraction in parameters.fractions_dropped
        for method in methods.available()
        for domain in parameters.domains
        if set(methods.load(method).STATISTICS) <= set(statistics[domain].sums)
    }
    return {key: plan for key, plan in plans.items() if plan.is_pruning}


def score_all(
    base_model: CheckpointReference,
    plans: Mapping[Key, CompressionPlan],
    domains_folder: Path,
    parameters: ResultsParameters,
) -> dict[str, Any]:
    """Return the scores of all plans, and of the model as it is."""
    from moe_compress.evaluation.heldout import read_texts
    from moe_compress.evaluation.loading import load_stock
    from moe_compress.evaluation.plans import PlanScorer, score_plans
    from moe_compress.evaluation.tasks import load_task

    stock = load_stock(base_model.path)
    files = {name: domains_folder / name / "benchmark.jsonl" for name in parameters.domains}
    heldout = {
        name: read_texts(domains_folder / name / "heldout.jsonl", parameters.heldout_limit, parameters.seed)
        for name in parameters.domains
        if (domains_folder / name / "heldout.jsonl").is_file()
    }
    scorer = PlanScorer(
        stock.model,
        stock.tokenizer,
        [load_task(name, file) for name, file in files.items()],
        [load_task(name, file, parameters.other_limit, parameters.seed) for name, file in files.items()],
        heldout,
    )
    return {
        "base": scorer.score(None, in_full=parameters.domains),
        "base_few": scorer.score(None, in_full=()),
        "plans": dict(score_plans(scorer, plans)),
    }


def write_page(
    scores: Mapping[str, Any], plans: Mapping[Key, CompressionPlan], parameters: ResultsParameters
) -> None:
    """Write the page and its plots."""
    from moe_compress.evaluation.compare import wilson_interval
    from moe_compress.reporting.results_page import Cell, MethodResults, write_results_page

    def cell(score: Any, domain: str) -> Cell:
        low, high = wilson_interval(score.num_right[domain], score.num_items[domain])
        perplexity = score.perplexities.get(domain, float("nan"))
        return Cell(score.accuracy(domain), low, high, score.num_items[domain], perplexity)

    results = MethodResults(
        base={domain: cell(scores["base"], domain) for domain in parameters.domains},
        base_few={domain: cell(scores["base_few"], domain) for domain in parameters.domains},
        cells={
            key: {domain: cell(score, domain) for domain in parameters.domains}
            for key, score in scores["plans"].items()
        },
        plans=plans,
        method=parameters.compared_method,
    )
    write_results_page(results, Path(parameters.page))


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
            Node(plan_all, ["results_statistics", "params:results"], "results_plans", name="plan_all"),
            Node(
                score_all,
                ["base_model", "results_plans", "domains_folder", "params:results"],
                "results_scores",
                name="score_all",
            ),
            Node(
                write_page, ["results_scores", "results_plans", "params:results"], None, name="write_results_page"
            ),
        ]
    )
