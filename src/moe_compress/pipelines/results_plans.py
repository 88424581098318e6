"""The plans of the results table: every row's method, for each domain on its own and for all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from moe_compress import methods
from moe_compress.collection.requests import resolve_requests
from moe_compress.errors import MoeCompressError, ParameterError
from moe_compress.pipelines.parameters import Parameters
from moe_compress.types import MIXED, Budget, CompressionPlan, ExpertStatistics, LeftOut, Trial, TrialKey

Statistics = Mapping[str, ExpertStatistics]


class RowParameters(Parameters):
    """A row that is not simply a method as it comes."""

    method: str
    scope: Literal["per_layer", "global", "importance"] = "per_layer"
    weights: Literal["max_min"] | None = Field(None, description="of the domains; such a row has mixed plans only")
    parameters: dict[str, Any] = Field({}, description="the method's own")
    seeds: tuple[int, ...] = Field((), description="averaged over; none given stands for the table's own")


class ResultsParameters(Parameters):
    """What the table holds."""

    domains: tuple[str, ...] = Field(min_length=2)
    fractions_dropped: tuple[float, ...] = Field((0.5,), min_length=1)
    rows: dict[str, RowParameters] = Field({}, description="besides one for each method")
    compared_method: str = "easy_ep"
    compared_fractions: tuple[float, ...] = ()
    benchmark_limit: int | None = Field(None, ge=1)
    heldout_limit: int | None = Field(None, ge=1)
    workers: int | None = Field(None, ge=1)
    seed: int = 42
    page: str = "docs/results/methods.md"

    def all_rows(self) -> dict[str, RowParameters]:
        """Return one row per method, then those given; one given under a method's own name stands for it.

        Raises:
            PluginError: if a row or `compared_method` names no method.
        """
        methods.load(self.compared_method)
        rows = {name: RowParameters(method=name) for name in methods.available()} | self.rows
        for row in rows.values():
            methods.check_parameters(row.method, row.parameters)
        return rows


def split_rows(parameters: ResultsParameters) -> tuple[dict[str, RowParameters], tuple[LeftOut, ...]]:
    """Return the rows whose statistics can be collected, and why the others are left out."""
    rows, left_out = {}, []
    for name, row in parameters.all_rows().items():
        try:
            resolve_requests(methods.load(row.method).STATISTICS)
            rows[name] = row
        except ParameterError as error:
            left_out.append(LeftOut(name, str(error)))
    return rows, tuple(left_out)


def plan_rows(
    statistics: Statistics, parameters: ResultsParameters
) -> tuple[tuple[Trial, ...], tuple[LeftOut, ...]]:
    """Return every trial of the table, and what has to be left out with the reason."""
    rows, left_out = split_rows(parameters)
    trials, reasons = [], {each.row: each.reason for each in left_out}
    for key in _list_keys(rows, parameters):
        try:
            plan = _plan(rows[key.row], key, statistics)
        except MoeCompressError as error:
            where = f"{key.row}, {MIXED if key.made_for == MIXED else 'own'}"
            reasons.setdefault(where, str(error))
        else:
            trials.append(Trial(key, plan, _measured_on(key, parameters)))
    return tuple(trials), tuple(LeftOut(where, reason) for where, reason in reasons.items())


def _list_keys(rows: Mapping[str, RowParameters], parameters: ResultsParameters) -> Iterator[TrialKey]:
    """Yield the keys fraction by fraction, so that a run that is stopped leaves whole ones behind."""
    for fraction in parameters.fractions_dropped:
        for name, row in rows.items():
            for domain in (MIXED,) if row.weights else (*parameters.domains, MIXED):
                for seed in row.seeds or (parameters.seed,):
                    yield TrialKey(name, domain, fraction, seed)


def _measured_on(key: TrialKey, parameters: ResultsParameters) -> tuple[str, ...]:
    is_compared = key.row == parameters.compared_method and key.fraction in parameters.compared_fractions
    return parameters.domains if key.made_for == MIXED or is_compared else (key.made_for,)


def _plan(row: RowParameters, key: TrialKey, statistics: Statistics) -> CompressionPlan:
    budget = Budget(fraction_dropped=key.fraction, scope=row.scope)
    if key.made_for != MIXED:
        return methods.plan(row.method, statistics[key.made_for], budget, key.seed, parameters=row.parameters)
    return methods.plan_mixed(
        row.method, list(statistics.values()), budget, key.seed, row.weights, parameters=row.parameters
    )
