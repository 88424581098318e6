"""From the facts in `engines.yaml` to one verdict per engine; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from moe_compress.types import EngineVerdict, Reason, Served, Verdict

_PARALLEL_SIZES = (2, 4, 8, 16)
"""Numbers of devices people share experts over."""

_GRAVEST_LAST = ("slower", "condition", "misreads", "refuses")
_VERDICTS: dict[str, Verdict] = {
    "slower": "loads",
    "condition": "loads with conditions",
    "misreads": "misreads",
    "refuses": "no",
}


def judge(served: Served) -> tuple[EngineVerdict, ...]:
    """Return what each engine is expected to do with a checkpoint, in the order of the facts."""
    return tuple(_judge_engine(facts, served) for facts in read_facts().values())


@cache
def read_facts() -> Mapping[str, Any]:
    """Return the facts about engines that come with this package."""
    content: Mapping[str, Any] = yaml.safe_load((files(__package__) / "engines.yaml").read_text(encoding="utf-8"))
    return content


def as_lines(verdicts: Sequence[EngineVerdict]) -> list[str]:
    """Return the verdicts as a short table, one line an engine and one more for each reason."""
    width = max(len(each.engine) for each in verdicts)
    lines = []
    for each in verdicts:
        lines.append(f"{each.engine:{width}}  {each.verdict}" + ("" if each.was_run else " (not run)"))
        lines += [f"{'':{width}}  - {reason.effect}: {reason.text}" for reason in each.reasons]
    return lines


def _judge_engine(facts: Mapping[str, Any], served: Served) -> EngineVerdict:
    reasons = tuple(_find_reasons(facts["rules"], served))
    read = facts.get("architectures")
    is_unknown = read is not None and served.architecture not in read["names"]
    if read is not None and is_unknown:
        text = f"{served.architecture or 'its architecture'} is not in the list that was read; {read['otherwise']}"
        reasons = (Reason("condition", text, read["source"]), *reasons)
    worst = max((_GRAVEST_LAST.index(reason.effect) for reason in reasons), default=0)
    verdict = _VERDICTS[_GRAVEST_LAST[worst]]
    if is_unknown and verdict not in ("misreads", "no"):
        verdict = "not known"
    return EngineVerdict(facts["name"], verdict, facts["was_run"], reasons)


def _find_reasons(rules: Iterable[Mapping[str, Any]], served: Served) -> Iterable[Reason]:
    for rule in rules:
        if all(CONDITIONS[name](served, value) for name, value in rule["when"].items()):
            yield Reason(rule["effect"], rule["says"].format(**_describe(served)), rule["source"])


def _describe(served: Served) -> dict[str, object]:
    *first, last = [str(size) for size in _PARALLEL_SIZES if not _divides(size, served)] or ["none"]
    return {"experts": _most(served), "others": f"{', '.join(first)} or {last}" if first else last}


def _divides(size: int, served: Served) -> bool:
    return all(count % size == 0 for count in served.layout.num_experts)


def _is_power_of_two(count: int) -> bool:
    return count & (count - 1) == 0


def _most(served: Served) -> int:
    return max(served.layout.num_experts)


CONDITIONS: Mapping[str, Callable[[Served, Any], bool]] = {
    "layers_differ": lambda served, wanted: served.layout.is_uniform != wanted,
    "more_experts_than": lambda served, limit: _most(served) > limit,
    "fewer_experts_than": lambda served, limit: _most(served) < limit,
    "count_not_in": lambda served, counts: any(count not in counts for count in served.layout.num_experts),
    "is_power_of_two": lambda served, wanted: all(map(_is_power_of_two, served.layout.num_experts)) == wanted,
    "all_sizes_divide": lambda served, wanted: all(_divides(size, served) for size in _PARALLEL_SIZES) == wanted,
    "has_groups": lambda served, wanted: (served.layout.num_groups > 1) == wanted,
    "groups_above": lambda served, limit: served.layout.num_groups > limit,
    "group_size_above": lambda served, limit: _most(served) // served.layout.num_groups > limit,
    "top_k_above": lambda served, limit: served.layout.top_k > limit,
    "model_types": lambda served, names: served.model_type in names,
    "quantisations": lambda served, names: served.quantisation in names,
    "dtypes": lambda served, names: served.dtype in names,
}
"""What a rule may ask about a checkpoint: name in `engines.yaml` -> whether it holds, given the rule's value."""
