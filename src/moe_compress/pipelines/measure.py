"""Everything a gate may ask of a candidate, by the name it asks with; docs/gates.md lists the names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from moe_compress.types import (
    Agreement,
    EvaluationResult,
    Measurements,
    ProbeResult,
    TaskComparison,
    Throughput,
)

Values = dict[str, float]
Speeds = tuple[Throughput, Throughput]
_RATIOS = {
    "num_bytes": "size_ratio",
    "num_parameters": "parameter_ratio",
    "tokens_per_second": "speed_ratio",
    "load_seconds": "load_ratio",
    "peak_memory_bytes": "peak_memory_ratio",
    "yardstick": "yardstick_ratio",
    "prefill_tokens_per_second": "prefill_ratio",
    "decode_tokens_per_second": "decode_ratio",
    "perplexity": "perplexity_ratio",
    "length": "length_ratio",
}
HIGHER_IS_BETTER = frozenset(
    {
        "accuracy",
        "share_kept",
        "difference",
        "effect",
        "p_value",
        "gained",
        "top1_agreement",
        "length",
        "length_ratio",
        "ended",
        "ended_change",
    }
)
LOWER_IS_BETTER = frozenset(
    {"lost", "perplexity", "perplexity_ratio", "kl", "loops", "loops_added", "repetition", "repetition_added"}
)
"""With `HIGHER_IS_BETTER` everything that is measured per task or domain; what is in neither has no `domain`."""

_CHANGES = {"loops": "loops_added", "repetition": "repetition_added", "ended": "ended_change"}


def measure(
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    comparisons: Mapping[str, TaskComparison],
    probes: ProbeResult,
    speeds: Speeds,
    agreement: Sequence[Agreement],
    targets: Sequence[str],
) -> Measurements:
    """Return what was measured of both models, and what changed from one to the other.

    What is measured per task is also there as `domain`, the worst of `targets`, the domains compressed for. What
    was measured but is no finite number stays, so that a gate on it fails and says why.
    """
    before = describe_model(baseline, speeds[0]) | measure_writing(baseline)
    after = describe_model(candidate, speeds[1]) | measure_writing(candidate)
    values = {**after, **compare_numbers(before, after), **measure_keys(candidate)}
    asked = measure_tasks(comparisons)
    values |= asked.values
    found = measure_probes(probes)
    values |= found.values
    faults = [fault for fault in (candidate.fault, probes.fault) if fault]
    values["faults"] = float(len(faults))
    for each in agreement:
        values |= each.as_metrics()
    return Measurements(
        name_worst(values, targets),
        name_worst({**before, **asked.baseline, **found.baseline}, targets),
        {**found.places, "faults": "; ".join(faults), **tell_worst(values, targets)},
    )


def describe_model(result: EvaluationResult, speed: Throughput) -> Values:
    """Return one model's size, speeds, memory and perplexities."""
    values = {
        "num_bytes": float(result.num_bytes),
        "num_parameters": float(result.num_parameters),
        "tokens_per_second": result.tokens_per_second,
        "load_seconds": speed.load_seconds,
        "peak_memory_bytes": float(speed.peak_bytes),
        "yardstick": speed.yardstick,
    }
    for kind, by_size in (("prefill", speed.prefill), ("decode", speed.decode)):
        for size, found in by_size.items():
            values[f"{kind}_tokens_per_second.{size}"] = found.tokens_per_second
            values[f"{kind}_spread.{size}"] = found.spread
    return values | {f"perplexity.{name}": value for name, value in result.perplexities.items()}


def compare_numbers(before: Values, after: Values) -> Values:
    """Return ratios and changes, candidate against baseline, of what both have."""
    changes: Values = {}
    for name in before.keys() & after.keys():
        kind, dot, rest = name.partition(".")
        if kind in _RATIOS and before[name]:
            changes[f"{_RATIOS[kind]}{dot}{rest}"] = after[name] / before[name]
        elif kind in _CHANGES:
            changes[f"{_CHANGES[kind]}{dot}{rest}"] = after[name] - before[name]
    return changes


def measure_keys(candidate: EvaluationResult) -> Values:
    """Return how many tensors stock transformers did not find, or did not expect."""
    kinds = ("missing_keys", "unexpected_keys")
    return {kind: float(candidate.provenance[kind]) for kind in kinds if kind in candidate.provenance}


def measure_tasks(comparisons: Mapping[str, TaskComparison]) -> Measurements:
    """Return what became of each task's accuracy, with the ends of the intervals."""
    from moe_compress.evaluation.compare import wilson_interval

    values: Values = {}
    baseline: Values = {}
    for task, each in comparisons.items():
        low, high = wilson_interval(round(each.candidate_accuracy * each.num_items), each.num_items)
        values |= {
            f"accuracy.{task}": each.candidate_accuracy,
            f"accuracy.{task}.low": low,
            f"accuracy.{task}.high": high,
            f"share_kept.{task}": each.share_kept,
            f"share_kept.{task}.low": each.share_kept_low,
            f"share_kept.{task}.high": each.share_kept_high,
            f"difference.{task}": each.difference,
            f"difference.{task}.low": each.difference_low,
            f"difference.{task}.high": each.difference_high,
            f"p_value.{task}": each.p_value,
            f"effect.{task}": each.effect,
            f"lost.{task}": each.lost / each.num_items,
            f"gained.{task}": each.gained / each.num_items,
        }
        baseline[f"accuracy.{task}"] = each.baseline_accuracy
    return Measurements(values, baseline)


def measure_writing(result: EvaluationResult) -> Values:
    """Return per task how a model writes freely.

    `loops.*` and `ended.*` are shares of the texts, `length.*` a mean in tokens, `repetition.*` a mean share.
    """
    values: Values = {}
    for task in dict.fromkeys(text.task for text in result.written):
        texts = result.written_for(task)
        values |= {
            f"loops.{task}": _mean([text.is_loop for text in texts]),
            f"ended.{task}": _mean([text.ended for text in texts]),
            f"length.{task}": _mean([text.num_tokens for text in texts]),
            f"repetition.{task}": _mean([text.repetition for text in texts]),
        }
    return values


def measure_probes(probes: ProbeResult) -> Measurements:
    """Return predictions and routing beside the base; of what differs by layer, the worst layer and its place."""
    values = {f"kl.{name}": value for name, value in probes.kl.items()}
    values |= {f"top1_agreement.{name}": value for name, value in probes.agreement.items()}
    baseline, places = {}, {}
    if probes.changed_rows is not None:
        values["router_rows_changed"] = float(len(probes.changed_rows))
        places["router_rows_changed"] = ", ".join(probes.changed_rows[:3])
    if probes.layers:
        for name, kind in (("router_drift", "drift"), ("load_cv", "variation"), ("load_peak", "peak")):
            found = [getattr(layer, kind) for layer in probes.layers]
            worst = int(np.argmax(found))  # the first NaN, if there is one
            values[name] = found[worst]
            places[name] = f"layer {probes.layers[worst].layer}"
        values["router_drift_mean"] = _mean([layer.drift for layer in probes.layers])
        values["router_weight_lost"] = _mean([layer.weight_lost for layer in probes.layers])
        baseline["load_cv"] = float(np.max([layer.base_variation for layer in probes.layers]))
    return Measurements(values, baseline, places)


def name_worst(values: Mapping[str, float], targets: Sequence[str]) -> Values:
    """Return the values, and as `domain` the worst of each metric that all domains compressed for have."""
    return {**values, **{alias: values[name] for alias, name in find_worst(values, targets).items()}}


def tell_worst(values: Mapping[str, float], targets: Sequence[str]) -> dict[str, str]:
    """Return `<metric>.domain` -> which of several domains it is the value of."""
    found = find_worst(values, targets) if len(targets) > 1 else {}
    return {alias: f"domain {name.split('.')[1]}" for alias, name in found.items()}


def find_worst(values: Mapping[str, float], targets: Sequence[str]) -> dict[str, str]:
    """Return `<metric>.domain` -> the same metric of the target where it is worst; of what all targets have.

    What is no finite number is worse than any.
    """
    worst = {}
    has_worst = HIGHER_IS_BETTER | LOWER_IS_BETTER
    for name in values:
        kind, *rest = name.split(".")
        names = [".".join([kind, target, *rest[1:]]) for target in targets]
        if kind in has_worst and name == names[0] and all(each in values for each in names):
            worst[".".join([kind, "domain", *rest[1:]])] = min(names, key=partial(_rank, values))
    return worst


def finite_only(values: Mapping[str, float]) -> Values:
    """Return the values that are finite numbers, for what cannot keep others: JSON files and MLflow."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _rank(values: Mapping[str, float], name: str) -> float:
    """Return a number that is smaller for worse values."""
    if not math.isfinite(values[name]):
        return -math.inf
    return values[name] if name.split(".")[0] in HIGHER_IS_BETTER else -values[name]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
