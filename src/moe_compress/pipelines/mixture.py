"""One plan for several domains: their statistics, collected one by one and saved, are mixed (EASY-EP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.pipelines.data import check_request
from moe_compress.pipelines.given import tell_no_background
from moe_compress.pipelines.lineage import describe_run
from moe_compress.pipelines.parameters import DomainParameters, SelectParameters
from moe_compress.types import (
    Budget,
    CheckpointReference,
    CompressionPlan,
    Demonstrations,
    ExpertStatistics,
    digest_of,
)


def record_mixture(
    base_model: CheckpointReference,
    run_keys: Mapping[str, str],
    domains_folder: Path,
    select: SelectParameters,
    own: DomainParameters,
    *demonstrations: Demonstrations,
) -> dict[str, str]:
    """Return what the run's outputs come from, as short texts, and tell MLflow which data it reads.

    The demonstrations stand for those that were checked, also where their statistics were collected before.
    """
    from moe_compress.registry.tracking import log_dataset_digest

    digests = {each.domain: each.digest for each in demonstrations}
    for domain, digest in digests.items():
        log_dataset_digest(f"{domain}.demonstrations", digest, str(domains_folder / domain), "calibration")
    chosen = own.selection(select)
    origin = {
        "domains": "+".join(sorted(own.targets)),
        "demonstrations_digest": digest_of(digests),
        "num_demonstrations": str(sum(len(each) for each in demonstrations)),
        **chosen.as_provenance(),
    }
    return describe_run(base_model, origin, run_keys, domains_folder, own)


def plan_mixture(
    budget: Budget,
    shared: SelectParameters,
    own: DomainParameters,
    lineage: Mapping[str, str],
    *statistics: ExpertStatistics,
) -> CompressionPlan:
    """Return which experts of each layer stay for all of a mixture's domains.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the model, weights the domains or the method, or a size is not
            kept to.
        StatisticsError: if the statistics do not belong together, or lack a sum the method needs.
    """
    chosen = own.selection(shared)
    plan = methods.plan_mixed(
        chosen.method,
        statistics,
        budget,
        chosen.seed,
        chosen.weights,
        chosen.groups,
        chosen.parameters,
    )
    if chosen.budget.find_size():
        methods.check_within(plan, budget)
    return replace(plan, provenance={**lineage, **plan.provenance})


def create_pipeline(domains: Sequence[str]) -> Pipeline:
    """Return the stages data and select of a mixture: every domain's own -> layout, lineage, plan.

    The statistics of domain `x` come in as `statistics_of_x`, its demonstrations as `demonstrations_of_x`.
    """
    statistics = [f"statistics_of_{domain}" for domain in domains]
    demonstrations = [f"demonstrations_of_{domain}" for domain in domains]
    return Pipeline(
        [
            Node(
                check_request,
                ["base_model", "params:select", "params:domain", "params:rewrite", "params:tune"],
                ["layout", "budget"],
                name="check_request",
            ),
            Node(
                record_mixture,
                ["base_model", "run_keys", "domains_folder", "params:select", "params:domain", *demonstrations],
                "lineage",
                name="record_lineage",
            ),
            Node(
                plan_mixture,
                ["budget", "params:select", "params:domain", "lineage", *statistics],
                "plan",
                name="plan_experts",
            ),
            Node(tell_no_background, None, ["agreement", "background"], name="tell_no_background"),
        ]
    )
