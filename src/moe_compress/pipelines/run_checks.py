"""What can be known of a run from its pipeline and its parameters, before any file is looked at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from difflib import get_close_matches
from typing import Any

from kedro.pipeline import Pipeline

from moe_compress.errors import ParameterError

_WHOLE_BLOCK = {"name", "registered_model"}
"""What a domain's block needs."""


def check_given(given: Mapping[str, Any], configured: Mapping[str, Any]) -> None:
    """Check the names of what `--params` gives.

    Args:
        given: what is given.
        configured: the parameters that conf/ has.

    Raises:
        ParameterError: naming the first that no stage knows.
    """
    check_names(given, {*configured, "base_model"})
    if isinstance(domains := given.get("domains"), Mapping):
        # A block that conf/ has only in another environment may be given as a whole.
        blocks = {name: block for name, block in domains.items() if isinstance(block, Mapping)}
        whole = {name for name, block in blocks.items() if block.keys() >= _WHOLE_BLOCK}
        check_names(domains, {*configured.get("domains", {}), *whole}, "domains.")


def check_names(given: Iterable[str], known: Set[str], block: str = "") -> None:
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
    from moe_compress.collection.distributed import count_ranks

    namespaces = {name.partition(".")[0] for name in pipeline.datasets()}
    found = tuple(sorted(namespaces & set(parameters.get("domains", {}))))
    made = {f"{domain}.{value}": domain for domain in found for value in ("plan", "sweep", "candidate_checkpoint")}
    plans = sorted({made[name] for name in pipeline.all_outputs() & set(made)})
    if len(plans) > 1:
        raise ParameterError(f"one run compresses for one domain, not for {', '.join(plans)}; run them one by one")
    if plans and (processes := count_ranks()) > 1:
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
