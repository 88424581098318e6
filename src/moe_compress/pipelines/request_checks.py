"""What can be known of a request before the base model is even looked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from moe_compress import methods
from moe_compress.errors import DataError, ParameterError
from moe_compress.gates.decide import parse_gates
from moe_compress.pipelines.given_plan import find_given
from moe_compress.pipelines.parameters import DomainParameters, SelectParameters
from moe_compress.pipelines.run_keys import requests_of
from moe_compress.tuning.settings import TuneSettings


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
            mixture's method needs, if a plan is given or to be refined, if the method has no scores to weigh, or a
            weight is for a domain that is not mixed.
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
    methods.check_weights(chosen.method, chosen.weights)
    strangers = sorted(set(chosen.weights) - set(own.of)) if isinstance(chosen.weights, Mapping) else []
    if strangers:
        raise ParameterError(
            f"select.weights names '{strangers[0]}', which {own.name} does not mix; use {', '.join(own.of)}"
        )
