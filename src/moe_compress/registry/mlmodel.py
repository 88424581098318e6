"""Make a checkpoint folder an MLflow model by one small file beside its weights, which nobody opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe_compress import __version__
from moe_compress.atomic import write_atomically
from moe_compress.errors import RegistryError
from moe_compress.registry import loader

FILE_NAME = "MLmodel"


def write_mlmodel(folder: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """Write `MLmodel` into a checkpoint folder, so that MLflow loads the folder as it is.

    The file is left untouched if it already says the same, and replaced in one step if not.

    Args:
        folder: a checkpoint folder; its weights are not opened.
        metadata: lineage to keep in the file, beside the version of this package.

    Returns:
        The file's path.

    Raises:
        RegistryError: if the folder holds no checkpoint.
    """
    from mlflow.models import Model

    if not (folder / "config.json").is_file():
        raise RegistryError(f"{folder} has no config.json, so it is no checkpoint; write the checkpoint first")
    path = folder / FILE_NAME
    model = _model({**(metadata or {}), "loader_package": f"moe-compress=={__version__}"})
    if path.is_file() and _content(Model.load(str(path))) == _content(model):
        return path
    write_atomically(path, model.to_yaml().encode())
    return path


def check_mlmodel(folder: Path) -> str | None:
    """Return what is wrong with a folder's `MLmodel`, None if nothing is.

    Only what MLflow acts on counts: how the folder is loaded, and what goes in and comes out.
    """
    from mlflow.models import Model

    path = folder / FILE_NAME
    try:
        found, expected = _content(Model.load(str(path))), _content(_model({}))
    except Exception as error:  # YAML that is none, or a field that MLflow does not know
        return f"it cannot be read: {' '.join(str(error).split())[:200]}"
    changed = [name for name in ("flavors", "signature") if found[name] != expected[name]]
    return f"its {changed[0]} are not what this package writes" if changed else None


def _model(metadata: Mapping[str, str]) -> Any:
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    new_tokens = ParamSchema([ParamSpec("max_new_tokens", "long", loader.DEFAULT_NEW_TOKENS)])
    model = Model(signature=ModelSignature(inputs=text, outputs=text, params=new_tokens), metadata=dict(metadata))
    return mlflow.pyfunc.add_to_model(model, loader_module=loader.__name__, data=".")


def _content(model: Any) -> dict[str, Any]:
    """Return what the file says, without the id and time that differ at every writing."""
    return {key: model.to_dict().get(key) for key in ("flavors", "signature", "metadata")}
