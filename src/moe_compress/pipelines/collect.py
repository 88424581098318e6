"""Stage 2, collect: every statistic of the domain's demonstrations in one pass over the base model."""

from __future__ import annotations

from collections.abc import Mapping

from kedro.pipeline import Node, Pipeline

from moe_compress.pipelines.parameters import CollectParameters, DomainParameters, SelectParameters
from moe_compress.pipelines.requests import find_requests
from moe_compress.types import CheckpointReference, Demonstrations, ExpertStatistics, MoELayout


def collect_statistics(
    base_model: CheckpointReference,
    layout: MoELayout,
    demonstrations: Demonstrations,
    parameters: CollectParameters,
    select: SelectParameters,
    own: DomainParameters,
    lineage: Mapping[str, str],
) -> ExpertStatistics:
    """Return the domain's expert statistics; `layout` stands for a request that was checked."""
    from moe_compress.collection.resident import collect_resident, load_resident

    model, tokenizer = load_resident(base_model.path, parameters.device, parameters.dtype)
    return collect_resident(
        model,
        tokenizer,
        demonstrations,
        layout,
        parameters.max_tokens,
        parameters.batch_size,
        lineage,
        find_requests(own.selection(select).method, parameters.statistics),
        parameters.embedding_tokens,
    )


def create_pipeline() -> Pipeline:
    """Return the stage: (base model, demonstrations) -> statistics."""
    return Pipeline(
        [
            Node(
                collect_statistics,
                [
                    "base_model",
                    "layout",
                    "demonstrations",
                    "params:collect",
                    "params:select",
                    "params:domain",
                    "lineage",
                ],
                "statistics",
                name="collect_statistics",
            )
        ]
    )
