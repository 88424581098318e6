"""Stage 4, rewrite: plan the smaller checkpoint from names alone, and stream it."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.pipelines.parameters import RewriteParameters
from moe_compress.types import CheckpointReference, CompressionPlan


def plan_rewrite(
    base_model: CheckpointReference, plan: CompressionPlan, parameters: RewriteParameters
) -> CheckpointRewrite:
    """Return the `CheckpointRewrite` that the checkpoint dataset then streams to disk.

    Raises:
        UnsupportedModelError: if a tensor's role cannot be told.
        PlanError: if the plan does not fit the checkpoint.
        CheckpointError: if stock transformers would find tensors missing or unexpected, or a router's weights
            are not finite.
    """
    from moe_compress.checkpoint.index import read_index
    from moe_compress.checkpoint.rewrite import plan_rewrite as plan_from_names
    from moe_compress.checkpoint.routers import check_routers
    from moe_compress.families.derive import derive_tensor_map
    from moe_compress.families.verify import verify_checkpoint

    index = read_index(base_model.path)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    check_routers(index, tensor_map)
    options = parameters.model_dump(include={"max_shard_bytes", "weights", "mtp"})
    rewrite = plan_from_names(index, tensor_map, plan, **options)
    # What stock transformers would make of the files is known from their names and shapes alone.
    verify_checkpoint(rewrite.config, rewrite.shapes)
    return rewrite


def create_pipeline() -> Pipeline:
    """Return the stage: plan -> candidate checkpoint."""
    return Pipeline(
        [
            Node(
                plan_rewrite,
                ["base_model", "plan", "params:rewrite"],
                "candidate_checkpoint",
                name="rewrite_checkpoint",
            )
        ]
    )
