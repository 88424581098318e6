"""Would stock transformers load exactly these names and shapes with this config? Asked before a byte is written."""

from collections.abc import Mapping
from typing import Any

from moe_compress.errors import CheckpointError
from moe_compress.families.building import build_meta_model
from moe_compress.families.conversion import LoadReport, report_loading
from moe_compress.families.quantised import view_plain


def verify_checkpoint(config: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a checkpoint loads with no missing, unexpected or mismatched tensor; reads no weights.

    Args:
        config: the checkpoint's `config.json`.
        tensors: tensor name on disk -> shape.

    Raises:
        UnsupportedModelError: if transformers cannot build the model, or scales do not fit their weights.
        CheckpointError: if a tensor is missing, unexpected or has another shape than the model needs.
    """
    view = view_plain(config, tensors)
    if misfits := list_misfits(report_loading(build_meta_model(view.config), view.shapes)):
        raise CheckpointError(
            f"transformers would not load this checkpoint as it stands: {'; '.join(misfits)}; "
            "its config and tensors must fit each other"
        )


def list_misfits(report: LoadReport) -> list[str]:
    """Return what stock loading would complain about, a few words for each kind; nothing if all fits."""
    kinds = {"unexpected": report.unexpected, "missing": report.missing, "mismatched": report.mismatched}
    return [f"{len(names)} {kind} ({name_some(names)})" for kind, names in kinds.items() if names]


def name_some(names: tuple[str, ...], limit: int = 3) -> str:
    """Return the first few names for an error message."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
