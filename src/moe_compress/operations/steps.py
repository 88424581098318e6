"""A domain's whole job as steps for machines that share its data folder, read off the registered pipelines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kedro.pipeline import Node, Pipeline

from moe_compress.errors import ParameterError

Kind = Literal["prepare", "collect", "reduce", "baseline", "finish"]


@dataclass(frozen=True)
class Step:
    """Commands of one kind: one, or one for each shard.

    Attributes:
        name: unique, and fit for a host name.
        kind: what it does, which decides what it needs.
        words: the command after `kedro`, without its parameters.
        after: names of the steps it waits for.
        shards: how many commands it is; 0 for one that collects no shard.
        params: what the user gave as `--params`.
    """

    name: str
    kind: Kind
    words: tuple[str, ...]
    after: tuple[str, ...] = ()
    shards: int = 0
    params: str = ""

    def arguments(self, shard: str = "") -> list[str]:
        """Return the command after `kedro`; `shard` is the shard's number, or what an orchestrator puts it for."""
        own = [f"collect.shard={shard}/{self.shards}"] if self.shards else []
        params = ",".join([*own, *([self.params] if self.params else [])])
        return [*self.words, *([f"--params={params}"] if params else [])]


def plan_steps(
    pipelines: Mapping[str, Pipeline],
    catalog: Any,
    domain: str,
    shards: int,
    params: str = "",
    env: str | None = None,
) -> tuple[Step, ...]:
    """Return the steps of `prune_<domain>`, each after those it waits for.

    What the pipeline collects is divided into shards, and what it keeps without waiting for that runs beside it.

    Args:
        pipelines: the registered ones.
        catalog: tells which values are kept, and so handed from step to step.
        domain: a domain, or a mixture, whose domains are collected one by one.
        shards: parts of each collection.
        params: of every command, as `--params` takes them.
        env: the environment under `conf/`.

    Raises:
        ParameterError: if there are no shards.
    """
    if shards < 1:
        raise ParameterError(f"--shards is {shards}; give 1 or more")
    whole = pipelines[f"prune_{domain}"]
    collecting = [node for node in whole.nodes if "collect_folder" in node.inputs]
    common = (f"--env={env}",) if env else ()
    steps: list[Step] = []
    for node in collecting:
        ready = tuple(step.name for step in steps if step.kind == "prepare")
        steps += _collect(pipelines, node, shards, params, common, ready)
    waiting = whole.from_nodes(*(node.name for node in collecting)).nodes
    beside = (name for node in whole.nodes if node not in waiting for name in node.outputs)
    kept = sorted(name for name in beside if catalog.get(name) is not None)
    run = ("run", f"--pipelines=prune_{domain}")
    if kept:
        prepared = _names(steps, "prepare")
        words = (*run, f"--to-outputs={','.join(kept)}", *common)
        steps.append(Step(_host_name("baseline", domain), "baseline", words, prepared, params=params))
    after = _names(steps, "reduce", "baseline")
    return (*steps, Step(_host_name("finish", domain), "finish", (*run, *common), after, params=params))


def _collect(
    pipelines: Mapping[str, Pipeline],
    node: Node,
    shards: int,
    params: str,
    common: tuple[str, ...],
    after: tuple[str, ...],
) -> Iterable[Step]:
    """Yield the steps that make one domain's statistics; the first fetches and checks what all shards read."""
    domain = str(node.namespace)
    pipeline = f"collect_{domain}"
    inputs = ",".join(sorted(set(node.inputs) & pipelines[pipeline].all_outputs()))
    prepare, collect, reduce = (_host_name(kind, domain) for kind in ("prepare", "collect", "reduce"))
    words = ("run", f"--pipelines={pipeline}")
    # Its outputs stay in memory, which a run that resumes would take for nothing to do.
    yield Step(prepare, "prepare", (*words, f"--to-outputs={inputs}", "--fresh", *common), after, params=params)
    yield Step(collect, "collect", (*words, *common), (prepare,), shards, params)
    yield Step(reduce, "reduce", ("run", f"--pipelines=reduce_{domain}", *common), (collect,), params=params)


def _names(steps: Iterable[Step], *kinds: Kind) -> tuple[str, ...]:
    return tuple(step.name for step in steps if step.kind in kinds)


def _host_name(kind: str, domain: str) -> str:
    """Return a name in lower-case letters, digits and hyphens."""
    return f"{kind}-{domain}".lower().replace("_", "-")
