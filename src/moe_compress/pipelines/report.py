"""Stages 7 and 8, release and report: write down what was found, register what passed, and show both."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from moe_compress.atomic import write_atomically
from moe_compress.datasets.keyed import KEY_LENGTH
from moe_compress.pipelines.given_plan import locate
from moe_compress.pipelines.measure import finite_only
from moe_compress.pipelines.parameters import DomainParameters, ReleaseParameters, SelectParameters, plain
from moe_compress.registry.versions import RegisteredVersion
from moe_compress.reporting.content import CompressionReport, Drawing, FlippedItem
from moe_compress.reporting.tuning import TuningReport
from moe_compress.types import (
    Agreement,
    CheckpointReference,
    CompressionPlan,
    EvaluationResult,
    ItemResult,
    SweepResult,
)

if TYPE_CHECKING:
    from moe_compress.evaluation.tasks import BenchmarkItem

STAGES = ("data", "collect", "select", "rewrite", "tune", "evaluate", "statistics_gates", "gates", "release")
"""The parameter blocks a report shows."""

GIVEN = (
    "plan",
    "baseline",
    "candidate",
    "gate_docs",
    "agreement",
    "tuned",
    "lineage",
    "domains_folder",
    "newest_plans",
    "reporting_folder",
    "parameters",
)
"""What a report is drafted from, by the name that catalog and function share."""

FOUND = ("comparisons", "gate_report", "measured", "probes", "speeds", "background", "compatibility")
"""Results of earlier stages that a report holds as they are, by the name that catalog and report share."""

SHOWN = 300
"""Last characters that a report shows of a written answer."""

logger = logging.getLogger(__name__)


def draft_report(
    plan: CompressionPlan,
    baseline: EvaluationResult,
    candidate: EvaluationResult,
    gate_docs: Path,
    agreement: Sequence[Agreement],
    tuned: Sequence[TuningReport],
    checkpoint: CheckpointReference,
    lineage: Mapping[str, str],
    domains_folder: Path,
    newest_plans: Mapping[str, CompressionPlan],
    reporting_folder: Path,
    parameters: Mapping[str, Any],
    own: DomainParameters,
    **found: Any,
) -> tuple[CompressionReport, Mapping[str, Drawing]]:
    """Return the run's results and their drawings, and write and log them, whatever the gates say.

    What `FOUND` names goes into the report as it is.
    """
    from moe_compress.reporting.figures import illustrate, save_figures
    from moe_compress.reporting.report import draw

    report = CompressionReport(
        domain=own.name,
        plan=plan,
        baseline=baseline,
        candidate=candidate,
        parameters={name: plain(parameters[name]) for name in STAGES},
        provenance=join_lineage(lineage, plan, checkpoint, tuned),
        checkpoint=os.path.relpath(checkpoint.path),
        data_docs=os.path.relpath(gate_docs),
        other_plans=comparable_plans(plan, newest_plans, own.name),
        agreement=next(iter(agreement), None),
        targets=own.targets,
        flips=find_flips(baseline, candidate, domains_folder, own.targets),
        sweep=find_sweep(own.selection(parameters["select"]), own.name),
        tuning=next(iter(tuned), None),
        **found,
    )
    folder = report_folder(reporting_folder, report)
    figures = illustrate(report)
    save_figures(figures, folder)
    drawings = draw(figures)
    publish(report, drawings, folder)
    return report, drawings


def join_lineage(
    lineage: Mapping[str, str],
    plan: CompressionPlan,
    checkpoint: CheckpointReference,
    tuned: Sequence[TuningReport],
) -> dict[str, str]:
    """Return where a checkpoint came from: its run's lineage, its tuning's, and what was planned and written."""
    return {
        **lineage,
        **(tuned[0].lineage if tuned else {}),
        "plan_digest": plan.digest,
        "candidate_weights_digest": checkpoint.weights_digest,
    }


def find_sweep(chosen: SelectParameters, domain: str) -> SweepResult | None:
    """Return the sweep whose choice the run took, None where it took none."""
    if chosen.source != "sweep":
        return None
    from moe_compress.datasets import read_sweep

    return read_sweep(locate(chosen.source, domain).with_name("sweep.json"))


def comparable_plans(
    plan: CompressionPlan, plans: Mapping[str, CompressionPlan], domain: str
) -> dict[str, CompressionPlan]:
    """Return other domains' plans for the same base model by the same method with as many experts kept."""

    def kind(made: CompressionPlan) -> tuple[object, ...]:
        return made.provenance.get("base_weights_digest"), made.method, made.new_layout

    return {name: other for name, other in plans.items() if name != domain and kind(other) == kind(plan)}


def find_flips(
    baseline: EvaluationResult, candidate: EvaluationResult, domains_folder: Path, targets: Sequence[str]
) -> tuple[FlippedItem, ...]:
    """Return what only one model answered rightly, lost and gained in turn, of the targets and of benchmarks."""
    if candidate.fault:
        return ()
    from itertools import chain, zip_longest

    from moe_compress.evaluation.tasks import read_items

    files = {target: domains_folder / target / "benchmark.jsonl" for target in targets}
    texts = {(target, item.id): item for target, file in files.items() for item in read_items(file)}
    after = {(item.task, item.item): item for item in candidate.items}
    flips = [
        describe_flip(item, after[item.task, item.item], texts)
        for item in baseline.items
        if (item.task in targets or item.question) and item.is_correct != after[item.task, item.item].is_correct
    ]
    lost, gained = [f for f in flips if not f.is_gain], [f for f in flips if f.is_gain]
    mixed = chain.from_iterable(zip_longest(lost, gained))
    return tuple(flip for flip in mixed if flip is not None)


def describe_flip(
    before: ItemResult, after: ItemResult, texts: Mapping[tuple[str, str], BenchmarkItem]
) -> FlippedItem:
    """Return an item whose answer changed, with the text of its question and choices.

    Args:
        before: what the baseline answered.
        after: what the candidate answered.
        texts: the items of the targets' own tasks by task and id; a benchmark's say their question themselves.
    """
    if not before.log_likelihoods:
        given = [item.answer if item.is_correct else item.chosen for item in (before, after)]
        said = [str(answer)[-SHOWN:] for answer in (before.answer, *given)]
        choices = tuple(dict.fromkeys(said))
        return FlippedItem(before.task, before.question, choices, *map(choices.index, said))
    if before.question:
        question, choices = before.question, tuple(map(chr, range(65, 65 + len(before.log_likelihoods))))
    else:
        question, choices = texts[before.task, before.item].question, texts[before.task, before.item].choices
    return FlippedItem(before.task, question, choices, int(before.answer), int(before.chosen), int(after.chosen))


def publish(report: CompressionReport, drawings: Mapping[str, Drawing], folder: Path) -> Path:
    """Write the page of a report, log it and what lies beside it to MLflow, and return the page."""
    from moe_compress.plans.document import write_document
    from moe_compress.registry.tracking import log_run
    from moe_compress.reporting.report import write_html

    page = folder / "report.html"
    write_html(report, page, drawings)
    write_atomically(folder / "plan.json", write_document(report.plan).encode())
    passed = str(report.gate_report.passed).lower()
    log_run(
        params={},
        metrics=metrics_of(report),
        tags={"gates_passed": passed, **report.provenance},
        artifacts=[folder],
    )
    return page


def report_folder(reporting_folder: Path, report: CompressionReport) -> Path:
    """Return where one run's report lives."""
    return reporting_folder / report.domain / report.provenance["run_key"][:KEY_LENGTH]


def metrics_of(report: CompressionReport) -> dict[str, float]:
    """Return the numbers MLflow keeps of a report: everything gates may ask for that is a finite number.

    What both models have alone is told of each as `baseline.<metric>` and `candidate.<metric>`.
    """
    before, after = report.measured.baseline, report.measured.values
    metrics = {
        **{f"baseline.{name}": value for name, value in before.items()},
        **{f"candidate.{name}" if name in before else name: value for name, value in after.items()},
        **(report.tuning.as_metrics() if report.tuning else {}),
    }
    return finite_only(metrics)


def release_candidate(
    report: CompressionReport,
    checkpoint: CheckpointReference,
    base_model: CheckpointReference,
    run_keys: Mapping[str, str],
    reporting_folder: Path,
    parameters: ReleaseParameters,
    own: DomainParameters,
) -> tuple[RegisteredVersion, ...]:
    """Register the candidate by reference with its tags, checksums and card; no version if that was kept for later.

    Raises:
        GateFailedError: if a critical gate failed; nothing is registered then.
        RegistryError: if the registry refuses.
    """
    from moe_compress.checkpoint.checksums import write_checksums
    from moe_compress.gates.decide import require
    from moe_compress.pipelines.version_tags import version_tags
    from moe_compress.registry.delivery import register_or_keep
    from moe_compress.registry.mlmodel import write_mlmodel
    from moe_compress.reporting.model_card import write_model_card
    from moe_compress.reporting.table import print_report

    if not report.gate_report.passed:
        print_report(report)
    page = report_folder(reporting_folder, report) / "report.html"
    require(report.gate_report, os.path.relpath(page))
    write_mlmodel(checkpoint.path)
    # A server's store takes the folder as it is now; the version's own number is known only afterwards.
    uri = f"models:/{own.registered_model}@{parameters.alias}"
    write_model_card(replace(report, model_uri=uri), checkpoint.path, base_model.path)
    checksums = write_checksums(checkpoint.path, checkpoint.files)
    tags = version_tags(report, checkpoint, base_model, run_keys, checksums)
    version = register_or_keep(own.registered_model, checkpoint.path, tags, parameters.alias)
    if version is None:
        return ()
    released = replace(report, model_uri=version.uri)
    # A server's version is a folder of hard links, and a new card is a new file.
    for folder in {checkpoint.path.resolve(), *([version.folder] if version.is_here else [])}:
        write_model_card(released, folder, base_model.path)
    return (version,)


def finish_report(
    report: CompressionReport,
    drawings: Mapping[str, Drawing],
    registered: Sequence[RegisteredVersion],
    reporting_folder: Path,
    parameters: ReleaseParameters,
    own: DomainParameters,
) -> None:
    """Write the report again with what was registered, point the alias at it, and print table and place.

    The alias comes last of all: whoever asks for it finds a version that is whole, whenever a run was killed.
    """
    from moe_compress.registry.delivery import finish_or_keep
    from moe_compress.reporting.table import print_report

    said, uri = "", f"models:/{own.registered_model}@{parameters.alias}"
    for version in registered:
        said, uri = f"{version.name} version {version.version} (alias {parameters.alias})", version.uri
    finished = replace(report, registered=said, model_uri=uri)
    page = publish(finished, drawings, report_folder(reporting_folder, finished))
    for version in registered:
        finish_or_keep(version, parameters.alias)
    print_report(finished)
    logger.info("report: %s", os.path.relpath(page))


def create_pipeline() -> Pipeline:
    """Return the stages: gate report -> written report -> registered version -> finished report and alias."""
    return Pipeline(
        [
            Node(
                draft_report,
                {name: name for name in (*GIVEN, *FOUND)}
                | {"checkpoint": "candidate_checkpoint", "own": "params:domain"},
                ["report", "drawings"],
                name="draft_report",
            ),
            Node(
                release_candidate,
                [
                    "report",
                    "candidate_checkpoint",
                    "base_model",
                    "run_keys",
                    "reporting_folder",
                    "params:release",
                    "params:domain",
                ],
                "registered",
                name="release_candidate",
            ),
            Node(
                finish_report,
                ["report", "drawings", "registered", "reporting_folder", "params:release", "params:domain"],
                None,
                name="finish_report",
            ),
        ]
    )
