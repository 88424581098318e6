"""What a run's outputs come from, as short texts: base model, data, and how its plan came about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from moe_compress.pipelines.digests import file_digest
from moe_compress.pipelines.parameters import DomainParameters, SelectParameters
from moe_compress.types import CheckpointReference, Demonstrations, digest_of


def record_lineage(
    base_model: CheckpointReference,
    demonstrations: Demonstrations,
    run_keys: Mapping[str, str],
    domains_folder: Path,
    select: SelectParameters,
    own: DomainParameters,
) -> dict[str, str]:
    """Return what the outputs of a run come from that makes its plan, and tell MLflow which data it reads."""
    from moe_compress.registry.tracking import log_dataset_digest

    folder = domains_folder / own.name
    log_dataset_digest(f"{own.name}.demonstrations", demonstrations.digest, str(folder), "calibration")
    chosen = own.selection(select)
    origin = {
        "demonstrations_digest": demonstrations.digest,
        "num_demonstrations": str(len(demonstrations)),
        **chosen.as_provenance(),
    }
    return describe_run(base_model, origin, run_keys, domains_folder, own)


def describe_run(
    base_model: CheckpointReference,
    origin: Mapping[str, str],
    run_keys: Mapping[str, str],
    domains_folder: Path,
    own: DomainParameters,
) -> dict[str, str]:
    """Return a lineage, and tell MLflow which base model it is of and which benchmarks measure it.

    Args:
        base_model: the model that is compressed.
        origin: the entries on how the plan came about.
        run_keys: the run's keys and its command.
        domains_folder: holds the benchmarks.
        own: the domain, or the mixture.
    """
    from moe_compress.registry.tracking import log_dataset_digest, run_provenance

    log_dataset_digest("base_model", base_model.weights_digest, str(base_model.path), "base")
    benchmarks = {target: domains_folder / target / "benchmark.jsonl" for target in own.targets}
    digests = {target: file_digest(file) for target, file in benchmarks.items()}
    for target, file in benchmarks.items():
        log_dataset_digest(f"{target}.benchmark", digests[target], str(file), "evaluation")
    return {
        **base_model.as_provenance(),
        "domain": own.name,
        "benchmark_digest": digests.get(own.name) or digest_of(digests),
        **origin,
        **run_provenance(Path.cwd()),
        "command": run_keys["command"],
        "run_key": run_keys["run"],
    }
