"""What a first collection will take, said before the base model's weights are read for their digests.

Reading them takes minutes where a checkpoint has hundreds of gigabytes: too late to learn that it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from moe_compress.datasets.rows import RowsDataset
from moe_compress.pipelines.collect import open_checkpoint
from moe_compress.pipelines.data import number_rows, sample, text_of
from moe_compress.pipelines.parameters import CollectParameters, DataParameters
from moe_compress.pipelines.requests import find_sweep_requests
from moe_compress.pipelines.run_keys import requests_of
from moe_compress.types import Demonstrations

_COLLECTED = {"statistics", "sweep_statistics"}


def foresee_collections(parameters: Mapping[str, Any], pipeline: Pipeline, catalog: Any) -> None:
    """Say what each collection of a pipeline will take, and refuse what cannot fit.

    Nothing is said where all digests are remembered, because the collection soon speaks for itself, nor where an
    earlier run left statistics, which may be the ones that are asked for.

    Args:
        parameters: the run's parameters as Kedro resolved them.
        pipeline: what is about to run.
        catalog: its datasets, not bound to keys yet.

    Raises:
        MoeCompressError: if there is nothing to collect from, it cannot be collected, or it does not fit.
    """
    collections = [domains for domains in _find_collections(pipeline) if not _has_earlier(domains, catalog)]
    folder = catalog["base_model"].unread() if collections else None
    if folder is None:
        return
    from moe_compress.collection.collect import foresee

    collect = CollectParameters.model_validate(parameters["collect"])
    files, layout, settings = open_checkpoint(folder, collect)
    for domains in collections:
        texts = {name: _read_texts(name, parameters, catalog[f"{name}.demonstration_rows"]) for name in domains}
        requests = {name: _requests_of(parameters, name, value) for name, value in domains.items()}
        if all(len(own) for own in texts.values()):  # an empty table is the validation's to refuse
            foresee(files, layout, texts, settings, requests, Path(catalog["collect_folder"].load()))


def _find_collections(pipeline: Pipeline) -> Iterator[dict[str, str]]:
    """Yield, for each node that collects, domain -> the name of what it collects."""
    for node in pipeline.nodes:
        outputs = dict(name.partition(".")[::2] for name in node.outputs)
        if "collect_folder" in node.inputs and _COLLECTED.issuperset(outputs.values()):
            yield outputs


def _has_earlier(domains: Mapping[str, str], catalog: Any) -> bool:
    return all(bool(catalog[f"{domain}.{value}"].has_earlier()) for domain, value in domains.items())


def _read_texts(domain: str, parameters: Mapping[str, Any], rows: RowsDataset) -> Demonstrations:
    """Return a domain's demonstrations, which nothing has validated yet."""
    table = number_rows([dict(row) for row in rows.load()])
    chosen = sample(table, DataParameters.model_validate(parameters["data"]))
    return Demonstrations(domain, tuple(row["id"] for row in chosen), tuple(map(text_of, chosen)), digest="")


def _requests_of(parameters: Mapping[str, Any], domain: str, value: str) -> tuple[str, ...]:
    if value == "statistics":
        return requests_of(parameters, domain)
    return find_sweep_requests(parameters["sweep"]["methods"], parameters["collect"].get("statistics", ()))
