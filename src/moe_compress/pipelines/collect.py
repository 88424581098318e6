"""Stage 2, collect: every statistic of one domain or of all in one pass over the base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from moe_compress.datasets.keyed import KEY_LENGTH
from moe_compress.pipelines.digests import source, versions
from moe_compress.pipelines.parameters import CollectParameters, DomainParameters, SelectParameters
from moe_compress.pipelines.requests import find_reduction, find_requests
from moe_compress.types import CheckpointReference, Demonstrations, ExpertStatistics, MoELayout, Provenance

if TYPE_CHECKING:
    from moe_compress.collection.collect import CollectSettings
    from moe_compress.collection.progress import LayerRecord
    from moe_compress.collection.streamed import CheckpointFiles


SHARED = ("base_model", "params:collect", "params:select", "collect_folder")


def collect_statistics(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    select: SelectParameters,
    folder: Path,
    layout: MoELayout,
    demonstrations: Demonstrations,
    lineage: Provenance,
    own: DomainParameters,
) -> ExpertStatistics:
    """Return one domain's expert statistics; `layout` stands for a request that was checked."""
    return collect_jointly(base_model, parameters, select, folder, demonstrations, lineage, own)[0]


def collect_jointly(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    select: SelectParameters,
    folder: Path,
    *values: Any,
) -> list[ExpertStatistics]:
    """Return the expert statistics of several domains from one pass.

    `values` are, for each domain, its demonstrations, its lineage and its parameters.
    """
    domains, lineages, requests, selections = {}, {}, {}, {}
    for demonstrations, lineage, own in zip(values[::3], values[1::3], values[2::3], strict=True):
        domains[own.name], lineages[own.name] = demonstrations, lineage
        selections[own.name] = own.selection(select)
        requests[own.name] = find_requests(selections[own.name].method, parameters.statistics)
    found = collect_domains(base_model, parameters, domains, lineages, requests, folder, selections)
    return list(found.values())


def collect_domains(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    domains: Mapping[str, Demonstrations],
    lineages: Mapping[str, Provenance],
    requests: Mapping[str, tuple[str, ...]],
    folder: Path | None,
    selections: Mapping[str, SelectParameters] = MappingProxyType({}),
) -> dict[str, ExpertStatistics]:
    """Return domain -> expert statistics.

    Args:
        base_model: the checkpoint.
        parameters: how to collect.
        domains: the texts of each domain.
        lineages: domain -> provenance of its statistics.
        requests: domain -> statistics to collect besides those every collection has.
        folder: where a collection that may be killed commits each layer.
        selections: domain -> the method that the statistics are for, and its settings; the default's otherwise.
    """
    from moe_compress.collection.collect import collect

    files, layout, settings = open_checkpoint(base_model.path, parameters)
    reductions = {
        name: reduction
        for name, own in requests.items()
        if (reduction := find_reduction(own, selections.get(name, SelectParameters())))
    }
    code = [what_collects(), source("methods") if reductions else None]
    if folder is not None:
        folder = resume_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    return collect(files, layout, domains, settings, lineages, requests, folder, log_layer, reductions, code)


def what_collects() -> list[Any]:
    """Return the code that all collected sums depend on, as digests and versions."""
    return [_own_code(), versions("torch", "transformers")]


def _own_code() -> str:
    return source("collection", "families", "types", "loading.py", "pipelines/data.py", "pipelines/collect.py")


def resume_folder(folder: Path) -> Path:
    """Return the part of a folder in which collections by the code of this version can go on."""
    return folder / _own_code()[:KEY_LENGTH]


def remove_resume_points(folder: Path) -> None:
    """Remove what nobody goes on from: collections whose sums were saved, and those that older code left."""
    from moe_compress.collection.resume import remove_finished, remove_stale

    remove_finished(resume_folder(folder))
    remove_stale(folder, resume_folder(folder))


def open_checkpoint(
    folder: Path, parameters: CollectParameters
) -> tuple[CheckpointFiles, MoELayout, CollectSettings]:
    """Return a checkpoint as its headers describe it, its layout, and how it is collected from."""
    from moe_compress.checkpoint.index import read_index
    from moe_compress.collection.collect import CollectSettings
    from moe_compress.collection.streamed import CheckpointFiles
    from moe_compress.families.derive import derive_layout

    index = read_index(folder)
    files = CheckpointFiles(index.folder, index.config, index.tensors)
    settings = CollectSettings(**parameters.model_dump(exclude={"statistics"}))
    return files, derive_layout(index.config, index.shapes), settings


def log_layer(record: LayerRecord) -> None:
    """Tell MLflow how fast a layer went, and how long the rest will take."""
    from moe_compress.registry.tracking import log_step

    names = ("tokens_per_second", "bytes_per_second", "seconds_left")
    log_step({f"collect.{name}": getattr(record, name) for name in names}, record.layer)


def reduce_shards(shards: Sequence[ExpertStatistics]) -> ExpertStatistics:
    """Return the statistics of a domain whose shards were collected one by one.

    Raises:
        StatisticsError: if one is missing.
    """
    from moe_compress.collection.distributed import add_shards

    return add_shards(shards)


def create_pipeline() -> Pipeline:
    """Return the stage: (base model, demonstrations) -> statistics."""
    return Pipeline(
        [
            Node(
                collect_statistics,
                [*SHARED, "layout", "demonstrations", "lineage", "params:domain"],
                "statistics",
                name="collect_statistics",
            )
        ]
    )


def create_reduce_pipeline() -> Pipeline:
    """Return the stage: shards of the statistics -> statistics."""
    return Pipeline([Node(reduce_shards, "statistics_shards", "statistics", name="reduce_shards")])


def create_joint_pipeline(domains: tuple[str, ...]) -> Pipeline:
    """Return the stage for several domains in one pass; what it reads is in the domains' namespaces."""
    values = [
        name
        for domain in domains
        for name in (f"{domain}.demonstrations", f"{domain}.lineage", f"params:domains.{domain}")
    ]
    with warnings.catch_warnings():
        # Kedro wants a node in the one namespace it reads from; this one reads from several.
        warnings.filterwarnings("ignore", message="One or more dataset names contain")
        node = Node(
            collect_jointly,
            [*SHARED, *values],
            [f"{domain}.statistics" for domain in domains],
            name="collect_jointly",
        )
    return Pipeline([node])
