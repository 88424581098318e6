"""The whole job of one domain: data, collect, select, rewrite, evaluate, gate, release and report."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from moe_compress.pipelines import collect, data, evaluate, gate, report, rewrite, select

SHARED_INPUTS = {"base_model", "domains_folder", "newest_plans", "reporting_folder"}
SHARED_PARAMETERS = ("data", "collect", "select", "rewrite", "evaluate", "evaluate.seed", "gates", "release")


def create_pipeline(domain: str) -> Pipeline:
    """Return the pipeline of one domain, in the domain's own namespace.

    Args:
        domain: a block's name under `domains` in the parameters.
    """
    stages = (data, collect, select, rewrite, evaluate, gate, report)
    whole = sum((stage.create_pipeline() for stage in stages), Pipeline([]))
    return Pipeline(
        whole,
        namespace=domain,
        inputs=SHARED_INPUTS,
        parameters={
            **{f"params:{name}": f"params:{name}" for name in SHARED_PARAMETERS},
            "params:domain": f"params:domains.{domain}",
            "parameters": "parameters",
        },
        tags=domain,
    )
