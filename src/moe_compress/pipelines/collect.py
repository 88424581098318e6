"""Stage 2, collect: every statistic of one domain or of all in one pass over the base model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from moe_compress.pipelines.parameters import CollectParameters
from moe_compress.types import CheckpointReference, Demonstrations, ExpertStatistics, MoELayout, Provenance

if TYPE_CHECKING:
    from moe_compress.collection.progress import LayerRecord


def collect_statistics(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    folder: Path,
    layout: MoELayout,
    demonstrations: Demonstrations,
    lineage: Provenance,
) -> ExpertStatistics:
    """Return one domain's expert statistics; `layout` stands for a request that was checked."""
    domain = demonstrations.domain
    return collect_domains(base_model, parameters, {domain: demonstrations}, {domain: lineage}, folder)[domain]


def collect_jointly(
    base_model: CheckpointReference, parameters: CollectParameters, folder: Path, *values: Any
) -> list[ExpertStatistics]:
    """Return the expert statistics of several domains from one pass; `values` are demonstrations, then lineages."""
    half = len(values) // 2
    domains = {demonstrations.domain: demonstrations for demonstrations in values[:half]}
    lineages = dict(zip(domains, values[half:], strict=True))
    return list(collect_domains(base_model, parameters, domains, lineages, folder).values())


def collect_domains(
    base_model: CheckpointReference,
    parameters: CollectParameters,
    domains: Mapping[str, Demonstrations],
    lineages: Mapping[str, Provenance],
    folder: Path | None,
) -> dict[str, ExpertStatistics]:
    """Return domain -> expert statistics.

    Args:
        base_model: the checkpoint.
        parameters: how to collect.
        domains: the texts of each domain.
        lineages: domain -> provenance of its statistics.
        folder: where a collection that may be killed commits each layer.
    """
    from moe_compress.checkpoint.index import read_index
    from moe_compress.collection.collect import CollectSettings, collect
    from moe_compress.collection.streamed import CheckpointFiles
    from moe_compress.families.derive import derive_tensor_map

    index = read_index(base_model.path)
    layout = derive_tensor_map(index.config, index.shapes).layout
    files = CheckpointFiles(index.folder, index.config, index.tensors)
    settings = CollectSettings(**parameters.model_dump())
    return collect(files, layout, domains, settings, lineages, folder, log_layer)


def log_layer(record: LayerRecord) -> None:
    """Tell MLflow how fast a layer went."""
    from moe_compress.registry.tracking import log_step

    speeds = {"tokens_per_second": record.tokens_per_second, "bytes_per_second": record.bytes_per_second}
    log_step({f"collect.{name}": value for name, value in speeds.items()}, record.layer)


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
                ["base_model", "params:collect", "collect_folder", "layout", "demonstrations", "lineage"],
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
    values = [f"{domain}.{name}" for name in ("demonstrations", "lineage") for domain in domains]
    with warnings.catch_warnings():
        # Kedro wants a node in the one namespace it reads from; this one reads from several.
        warnings.filterwarnings("ignore", message="One or more dataset names contain")
        node = Node(
            collect_jointly,
            ["base_model", "params:collect", "collect_folder", *values],
            [f"{domain}.statistics" for domain in domains],
            name="collect_jointly",
        )
    return Pipeline([node])
