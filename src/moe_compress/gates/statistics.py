"""What gates may ask of expert statistics, before a model is rewritten from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from moe_compress.types import Agreement, ExpertStatistics, FloatArray, Measurements

_MORE_IS_BETTER = ("tokens", "tokens_per_expert")


def measure_statistics(statistics: ExpertStatistics, agreement: Sequence[Agreement]) -> Measurements:
    """Return the invariants of collecting, its coverage, and how far it depends on which demonstrations were seen.

    * `count_error`: per layer, how far `sum_i N_i` is from tokens times top_k; the worst layer's.
    * `not_finite`: numbers among the sums that are none.
    * `never_seen`: share of all experts that no token was routed to; `never_seen_worst`: of the layer's where it is
      largest.
    * `tokens`, and `tokens_per_expert`: the median over experts.
    * `split_half_jaccard`, `split_half_spearman` and `split_half_jaccard_worst`, where there are two halves.
    """
    layout = statistics.layout
    counts = [counts_E[:size] for counts_E, size in zip(statistics["count"], layout.num_experts, strict=True)]
    expected = statistics.num_tokens * layout.top_k
    errors_L = np.array([abs(counts_E.sum() - expected) for counts_E in counts])
    unseen_L = np.array([(counts_E == 0).mean() for counts_E in counts])
    broken = {name: _count_broken(values) for name, values in {**statistics.sums, **statistics.maxima}.items()}
    every = np.concatenate(counts)
    values = {
        "count_error": float(errors_L.max()),
        "not_finite": float(sum(broken.values())),
        "never_seen": float((every == 0).mean()),
        "never_seen_worst": float(unseen_L.max()),
        "tokens": float(statistics.num_tokens),
        "tokens_per_expert": float(np.median(every)),
    }
    places = {
        "count_error": f"layer {layout.layers[int(errors_L.argmax())]}",
        "not_finite": ", ".join(name for name, count in broken.items() if count),
        "never_seen_worst": f"layer {layout.layers[int(unseen_L.argmax())]}",
    }
    for found in agreement:
        values |= {**found.as_metrics(), "split_half_jaccard_worst": min(found.jaccard)}
        places["split_half_jaccard_worst"] = f"layer {found.layers[found.worst]}"
    # Nowhere is a place for nothing.
    return Measurements(values, places={metric: place for metric, place in places.items() if values[metric]})


def measure_several(statistics: Sequence[ExpertStatistics]) -> Measurements:
    """Return the worst of what `measure_statistics` tells of each domain, and whose it is.

    What is no finite number is worse than any.
    """
    found = {each.domain: measure_statistics(each, ()) for each in statistics}
    values, places = {}, {}
    for metric in next(iter(found.values())).values:
        badness = {domain: _badness(metric, each.values[metric]) for domain, each in found.items()}
        worst = max(badness, key=badness.__getitem__)
        values[metric] = found[worst].values[metric]
        places[metric] = ", ".join(filter(None, (f"domain {worst}", found[worst].places.get(metric))))
    return Measurements(values, places=places)


def _badness(metric: str, value: float) -> float:
    """Return a number that is larger for worse values."""
    if not math.isfinite(value):
        return math.inf
    return -value if metric in _MORE_IS_BETTER else value


def _count_broken(values: FloatArray) -> int:
    return int((~np.isfinite(values)).sum())
