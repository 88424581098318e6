"""What a run leaves behind in MLflow: flattened parameters, metrics, tags, small files and data digests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from moe_compress import __version__
from moe_compress.errors import RegistryError
from moe_compress.registry.client import active_run_id, mlflow_client
from moe_compress.registry.upload import storing
from moe_compress.registry.versions import shortened

_MAX_DATASET_DIGEST = 36
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def git_commit(folder: Path) -> str:
    """Return a folder's commit, with `+changes` if tracked files differ.

    Outside a repository it is what the image was built from (`MOE_COMPRESS_COMMIT`), or `none`.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return f"{commit}+changes" if _git(folder, "status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MOE_COMPRESS_COMMIT", "none")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def run_provenance(project: Path) -> dict[str, str]:
    """Return the lineage entries of the code: this package's version and the project's commit."""
    return {"package_version": __version__, "git_commit": git_commit(project)}


def flatten_parameters(parameters: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested parameters under dotted names; pydantic models and dataclasses count as mappings.

    Leaves are left as they are, so that MLflow writes them as any other logger would.
    """
    flat: dict[str, Any] = {}
    for key, value in parameters.items():
        name, plain = f"{prefix}{key}", _plain(value)
        if isinstance(plain, Mapping) and plain:
            flat.update(flatten_parameters(plain, f"{name}."))
        else:
            flat[name] = plain
    return flat


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def log_run(
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    artifacts: Sequence[Path] = (),
) -> str:
    """Log into the active run and return its id; everything is checked before anything is logged.

    Args:
        params: nested parameters, logged under dotted names.
        metrics: name -> value.
        tags: name -> value, cut if too long.
        artifacts: files, or folders logged under their own name; weights are refused. What cannot be copied while
            a server is away is kept by its place.

    Raises:
        RegistryError: if no run is active, an artifact is missing or holds weights, or MLflow refuses.
    """
    import mlflow

    from moe_compress.registry.delivery import upload_or_keep

    run_id = _required_run_id()
    for path in artifacts:
        _check_artifact(path)
    with mlflow_client(f"log run {run_id}"):
        mlflow.log_params(flatten_parameters(params))
        mlflow.log_metrics({name: float(value) for name, value in metrics.items()})
        mlflow.set_tags({name: shortened(str(value)) for name, value in tags.items()})
    for path in artifacts:
        upload_or_keep(run_id, path)
    return run_id


Child = tuple[Mapping[str, Any], Mapping[str, float], Mapping[str, str]]


def log_children(children: Mapping[str, Child]) -> None:
    """Log nested runs under the active one, if there is one.

    Args:
        children: name of the run -> its parameters, metrics and tags.

    Raises:
        RegistryError: if MLflow refuses.
    """
    import mlflow

    if active_run_id() is None:
        return
    for name, (params, metrics, tags) in children.items():
        with mlflow_client(f"log the nested run '{name}'"), mlflow.start_run(run_name=name, nested=True):
            log_run(params, metrics, tags)


def peak_memory() -> dict[str, float]:
    """Return the most bytes this process has held so far, in memory and, if it has used one, on its GPU."""
    found = {}
    with suppress(ImportError):  # Windows tells it otherwise
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["peak_memory_bytes"] = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        found["peak_gpu_memory_bytes"] = float(torch.cuda.max_memory_allocated())
    return found


def log_step(metrics: Mapping[str, float], step: int) -> None:
    """Log measurements of one step of something long into the active run, if there is one.

    Raises:
        RegistryError: if MLflow refuses.
    """
    import mlflow

    if active_run_id() is not None:
        with mlflow_client(f"log step {step}"):
            mlflow.log_metrics({name: float(value) for name, value in metrics.items()}, step=step)


def log_dataset_digest(name: str, digest: str, source: str, context: str) -> None:
    """Record in the active run which data it read, by our own digest; the data itself is not read.

    Args:
        name: the data's name, such as `medical.demonstrations`.
        digest: its sha256; MLflow shows the first 36 characters, the tag `sha256` holds all.
        source: its path or address.
        context: what it was used for, such as `calibration`.

    Raises:
        RegistryError: if no run is active, or MLflow refuses.
    """
    import mlflow
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource

    _required_run_id()
    with mlflow_client(f"record data '{name}'"):
        # Resolving a plain path would warn that two sources of the same kind claim it.
        place = resolve_dataset_source(source) if "://" in source else LocalArtifactDatasetSource(source)
        dataset = MetaDataset(place, name=name, digest=digest[:_MAX_DATASET_DIGEST])
        mlflow.log_input(dataset, context=context, tags={"sha256": digest})


def end_killed_run(run_id: str | None) -> None:
    """Mark a run whose process is gone as killed, if MLflow has it running; one it does not know is let be."""
    if run_id is None or run_id == active_run_id():
        return
    with suppress(RegistryError), mlflow_client(f"end run {run_id}") as client:
        if client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, "KILLED")


def read_metrics(run_id: str) -> dict[str, float]:
    """Return the last value of every metric of a run; none where the run is gone."""
    from mlflow.exceptions import MlflowException

    with mlflow_client(f"read the metrics of run {run_id}") as client:
        try:
            return dict(client.get_run(run_id).data.metrics)
        except MlflowException:
            return {}


def read_artifact(run_id: str, path: str) -> str | None:
    """Return the text of one of a run's files; None where the run or the file is gone.

    Raises:
        RegistryError: if that cannot be told, as without the credentials of the store.
    """
    from mlflow.artifacts import load_text

    doing = f"read {path} of run {run_id}"
    with mlflow_client(doing) as client, storing(doing):
        return str(load_text(f"runs:/{run_id}/{path}")) if _has_artifact(client, run_id, path) else None


def _has_artifact(client: Any, run_id: str, path: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return path in {found.path for found in client.list_artifacts(run_id, str(PurePosixPath(path).parent))}
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def _required_run_id() -> str:
    run_id = active_run_id()
    if run_id is None:
        raise RegistryError("no MLflow run is active, so there is nowhere to log; call this inside a pipeline run")
    return run_id


def _check_artifact(path: Path) -> None:
    if not path.exists():
        raise RegistryError(f"artifact {path} does not exist; write it before logging the run")
    files = path.rglob("*") if path.is_dir() else [path]
    weights = next((file for file in files if file.suffix in _WEIGHT_SUFFIXES), None)
    if weights is not None:
        raise RegistryError(
            f"artifact {path} holds the weights {weights.name}, which would be copied; "
            "register their folder instead"
        )
