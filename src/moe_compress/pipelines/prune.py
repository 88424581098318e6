"""The whole job of one domain: data, collect, select, rewrite, evaluate, gate, release and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kedro.pipeline import Pipeline

from moe_compress.pipelines import (
    collect,
    data,
    evaluate,
    gate,
    given,
    mixture,
    probe,
    refine,
    report,
    rewrite,
    select,
    sweep,
    tune,
)

SHARED_INPUTS = {
    "answers_folder",
    "base_model",
    "collect_folder",
    "domains_folder",
    "newest_plans",
    "refine_folder",
    "reporting_folder",
    "sweep_folder",
    "tune_folder",
}


def create_pipeline(domain: str) -> Pipeline:
    """Return the pipeline of one domain, in the domain's own namespace.

    Args:
        domain: a block's name under `domains` in the parameters.
    """
    stages = (data, collect, select, refine, rewrite, tune, evaluate, probe, gate, report)
    gated = gate.create_statistics_pipeline()
    return in_namespace(Pipeline([gated, *(stage.create_pipeline() for stage in stages)]), domain)


def create_mixture_pipeline(name: str, domains: Sequence[str]) -> Pipeline:
    """Return what compresses for several domains at once, collecting those that were not collected yet.

    Args:
        name: the mixture's block under `domains` in the parameters.
        domains: those it is a mixture of.
    """
    collected = sum((create_collect_pipeline(domain) for domain in domains), Pipeline([]))
    measured = evaluate.create_pipeline(checked="layout")
    tuned = tune.create_pipeline([f"demonstrations_of_{domain}" for domain in domains])
    after = sum((stage.create_pipeline() for stage in (rewrite, probe, gate, report)), tuned + measured)
    gated = gate.create_sums_pipeline([f"statistics_of_{domain}" for domain in domains])
    others = {
        f"{value}_of_{domain}": f"{domain}.{value}"
        for domain in domains
        for value in ("statistics", "demonstrations")
    }
    return collected + in_namespace(mixture.create_pipeline(domains) + gated + after, name, others)


def create_given_pipeline(domain: str) -> Pipeline:
    """Return what carries out a plan that is given (`select.from`): the whole job without collecting."""
    stages = (given, refine, rewrite, tune, evaluate, probe, gate, report)
    return in_namespace(Pipeline(stage.create_pipeline() for stage in stages), domain)


def create_sweep_pipeline(domain: str) -> Pipeline:
    """Return what tries methods x budgets for one domain and chooses a plan."""
    gated = gate.create_sums_pipeline(("sweep_statistics",))
    return in_namespace(data.create_pipeline() + gated + sweep.create_pipeline(), domain)


def create_collect_pipeline(domain: str) -> Pipeline:
    """Return what collects one domain's statistics, or a shard of them, and stops there."""
    return in_namespace(data.create_collect_pipeline() + collect.create_pipeline(), domain)


def create_reduce_pipeline(domain: str) -> Pipeline:
    """Return what adds up the shards of one domain's statistics."""
    return in_namespace(collect.create_reduce_pipeline(), domain)


def create_joint_pipeline(domains: tuple[str, ...]) -> Pipeline:
    """Return what collects the statistics of several domains in one pass, each kept under its own run key."""
    prepared = (in_namespace(data.create_collect_pipeline(), domain) for domain in domains)
    return sum(prepared, collect.create_joint_pipeline(domains))


def in_namespace(whole: Pipeline, domain: str, others: Mapping[str, str] | None = None) -> Pipeline:
    """Return a pipeline in a domain's namespace.

    Args:
        whole: the pipeline.
        domain: the domain.
        others: inputs from elsewhere, name in the pipeline -> name outside.
    """
    used = {name for name in whole.datasets() if name.startswith("params:") or name == "parameters"}
    own = {"params:domain": f"params:domains.{domain}"}
    return Pipeline(
        whole,
        namespace=domain,
        inputs={name: name for name in SHARED_INPUTS & whole.inputs()} | dict(others or {}),
        parameters={name: own.get(name, name) for name in used},
        tags=domain,
    )
