"""Stage 4, rewrite: tell who can load it, plan the smaller checkpoint from names alone, and stream it."""

from __future__ import annotations

import logging
from collections import Counter

from kedro.pipeline import Node, Pipeline

from moe_compress.checkpoint.index import CheckpointIndex
from moe_compress.checkpoint.jobs import CheckpointRewrite
from moe_compress.pipelines.parameters import RewriteParameters
from moe_compress.types import CheckpointReference, CompressionPlan, EngineVerdict, Served

logger = logging.getLogger(__name__)


def check_compatibility(
    base_model: CheckpointReference, plan: CompressionPlan, parameters: RewriteParameters
) -> tuple[EngineVerdict, ...]:
    """Return what each serving engine is expected to do with what the plan makes of the base model; log it."""
    from moe_compress.checkpoint.index import read_index
    from moe_compress.compatibility.judge import as_lines, judge

    verdicts = judge(describe_outcome(read_index(base_model.path), plan, parameters.weights))
    level = logging.WARNING if any(verdict.is_warning for verdict in verdicts) else logging.INFO
    logger.log(level, "who is expected to load the compressed checkpoint:\n%s", "\n".join(as_lines(verdicts)))
    return verdicts


def describe_outcome(index: CheckpointIndex, plan: CompressionPlan, weights: str) -> Served:
    """Return what of the checkpoint to be written decides how an engine takes it."""
    from moe_compress.families.quantised import find_settings

    names = index.config.get("architectures") or ""
    quantisation = find_settings(index.config).get("quant_method")
    num_bytes: Counter[str] = Counter()
    for info in index.tensors.values():
        num_bytes[info.dtype] += info.num_bytes
    is_decoded = bool(quantisation) and weights == "bfloat16"
    return Served(
        architecture=names if isinstance(names, str) else str(names[0]),
        model_type=str(index.config.get("model_type", "")),
        layout=plan.new_layout,
        quantisation=None if is_decoded else quantisation,
        dtype="BF16" if is_decoded else max(num_bytes, key=num_bytes.__getitem__),
    )


def plan_rewrite(
    base_model: CheckpointReference,
    plan: CompressionPlan,
    parameters: RewriteParameters,
    *first: object,
) -> CheckpointRewrite:
    """Return the `CheckpointRewrite` that the checkpoint dataset then streams to disk.

    `first` stands for what comes before a byte is written: a table that was shown, statistics that passed.

    Raises:
        UnsupportedModelError: if a tensor's role cannot be told.
        PlanError: if the plan does not fit the checkpoint.
        CheckpointError: if transformers would find tensors missing or unexpected, or a router's weights
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
    options = parameters.model_dump(include={"layout", "max_shard_bytes", "weights", "mtp"})
    rewrite = plan_from_names(index, tensor_map, plan, **options)
    # What transformers would make of the files is known from their names and shapes alone.
    verify_checkpoint(rewrite.config, rewrite.shapes)
    return rewrite


def create_pipeline() -> Pipeline:
    """Return the stage: plan -> verdicts of engines, pruned checkpoint."""
    return Pipeline(
        [
            Node(
                check_compatibility,
                ["base_model", "plan", "params:rewrite"],
                "compatibility",
                name="check_compatibility",
            ),
            Node(
                plan_rewrite,
                ["base_model", "plan", "params:rewrite", "compatibility", "statistics_report"],
                "pruned_checkpoint",
                name="rewrite_checkpoint",
            ),
        ]
    )
