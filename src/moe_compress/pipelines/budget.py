"""From the budget as it is written to one in experts: sizes need the checkpoint's names and shapes for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_compress import methods
from moe_compress.pipelines.parameters import RewriteParameters, SelectParameters
from moe_compress.types import Budget, TensorMap

if TYPE_CHECKING:
    from moe_compress.checkpoint.index import CheckpointIndex


def resolve_budget(
    chosen: SelectParameters, rewrite: RewriteParameters, index: CheckpointIndex, tensor_map: TensorMap
) -> Budget:
    """Return the budget in experts, which a model of this layout can meet.

    A size in bytes is that of the weight files as they will be written, headers included.

    Raises:
        ParameterError: if the model cannot meet it.
    """
    layout = tensor_map.layout.flattened if chosen.groups == "flatten" else tensor_map.layout
    limits, target = chosen.budget.as_budget(), chosen.budget.find_size()
    if target is None:
        methods.check_budget(limits, layout)
        return limits

    from moe_compress.checkpoint.sizes import weigh

    unit, max_size = target
    options = rewrite.model_dump(include={"layout", "max_shard_bytes", "weights", "mtp"})
    return methods.budget_within(max_size, weigh(index, tensor_map, unit, **options), layout, limits)
