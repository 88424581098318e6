"""The tags of a registered version: everything it was made from, what it is, and how it passed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from moe_compress.pipelines.key_parts import compact, from_keys
from moe_compress.reporting.content import CompressionReport
from moe_compress.types import CheckpointReference, GateReport


def version_tags(
    report: CompressionReport,
    checkpoint: CheckpointReference,
    base_model: CheckpointReference,
    run_keys: Mapping[str, str],
    checksums: Path,
) -> dict[str, str]:
    """Return a version's tags.

    Args:
        report: the run, whose provenance comes first.
        checkpoint: what is registered.
        base_model: what it was made from.
        run_keys: the run's keys, with the parts of the last.
        checksums: the file of checksums beside the checkpoint.
    """
    return {
        **report.provenance,
        "base_settings_files": compact(settings_files(base_model)),
        **from_keys(run_keys),
        "gates_passed": str(report.gate_report.passed).lower(),
        "gates": compact(describe_gates(report.gate_report)),
        "candidate_settings_digest": checkpoint.settings_digest,
        "candidate_num_bytes": str(report.candidate.num_bytes),
        "candidate_num_parameters": str(report.candidate.num_parameters),
        "baseline_num_bytes": str(report.baseline.num_bytes),
        "baseline_num_parameters": str(report.baseline.num_parameters),
        "experts": " -> ".join(report.experts_change),
        "checksums_digest": hashlib.sha256(checksums.read_bytes()).hexdigest(),
    }


def settings_files(reference: CheckpointReference) -> dict[str, list[str]]:
    """Return name -> sha256 and git blob id of the files beside the weights.

    The hub tells one or the other of a file without sending it, depending on how the file is stored.
    """
    return {
        name: [digest, git_blob_id((reference.path / name).read_bytes())]
        for name, digest in sorted(reference.files.items())
        if not name.endswith(".safetensors")
    }


def git_blob_id(content: bytes) -> str:
    """Return the id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def describe_gates(report: GateReport) -> dict[str, dict[str, object]]:
    """Return gate -> what was measured and asked, and whether it passed."""
    return {
        outcome.name: {
            "observed": outcome.observed,
            outcome.direction: outcome.limit,
            "basis": outcome.basis,
            "severity": outcome.severity,
            "passed": outcome.passed,
        }
        for outcome in report.outcomes
    }
