"""The tuning section: three models side by side, and how training went in words."""

from __future__ import annotations

from dataclasses import replace

from tests.reporting.conftest import make_comparison
from tests.reporting.test_table import words

from moe_compress.reporting.report import write_html
from moe_compress.reporting.tuning import TuningReport
from moe_compress.types import TuningCourse, TuningRecord, TuningStep

COURSE = TuningCourse(0.64, 20, (TuningStep(10, 0.7, 0.6), TuningStep(20, 0.6, 0.58), TuningStep(30, 0.5, 0.59)))
RECORD = TuningRecord(COURSE, 180, 20, 3, 4_000_000, 4_000_000)


def with_tuning(report, record=RECORD):
    lost = {name: make_comparison(name) for name in report.comparisons}
    pruned = replace(report.candidate, perplexities={**report.candidate.perplexities, "medical": 9.87})
    return replace(report, tuning=TuningReport(record, pruned, lost, lost))


def test_the_page_shows_the_three_models(report, tmp_path):
    assert "<h2>Tuning</h2>" not in write_html(report, tmp_path / "without.html", {}).read_text()
    page = write_html(with_tuning(report), tmp_path / "report.html", {}).read_text()
    section = page.partition("<h2>Tuning</h2>")[2].partition("</section>")[0]
    assert "6.412 → 9.87 → 6.488" in section
    assert section.index(">medical") < section.index(">code")


def test_the_terminal_shows_the_model_before_and_after(report):
    lines = words(with_tuning(report))
    place = lines.index("Tuning")
    assert "medical 80.0 % 79.0 % -1.0 (-3.5 to +1.5) 9.87 → 6.49" in lines[place:]
    assert "Tuning" not in words(report)


def test_the_lineage_and_the_metrics_tell_of_the_model_before(report):
    tuning = with_tuning(report).tuning
    digest = {"weights_digest": "d"}
    assert replace(tuning, pruned=replace(tuning.pruned, provenance=digest)).lineage == {
        "pruned_weights_digest": "d"
    }
    found = tuning.as_metrics()
    assert found["pruned.perplexity.medical"] == 9.87 and found["tuning.loss_after"] == 0.58
    assert found["pruned.accuracy.medical"] == report.candidate.accuracy("medical")


def test_training_is_told_in_words(report):
    said = with_tuning(report).tuning.summary
    assert said == (
        "Trained 100% of the parameters on 180 texts, validated with 20 others. 3 texts were left out: they hold "
        "what is measured with. The weights are those of step 20 of 30: validation loss 0.640 before, 0.580 after, "
        "in nats per token."
    )


def test_added_matrices_are_named(report, tmp_path):
    record = replace(RECORD, num_trained=200_000, adapted=("model.layers.*.mlp.experts",), num_left_out=0)
    tuned = with_tuning(report, record)
    assert tuned.tuning.summary.startswith("Trained LoRA of 5.0% as many parameters on 180 texts")
    assert "model.layers.*.mlp.experts" in write_html(tuned, tmp_path / "report.html", {}).read_text()


def test_weights_that_never_got_better_are_said_to_be_unchanged(report):
    record = replace(RECORD, course=replace(COURSE, best_step=0))
    assert record.course.loss_after == record.course.loss_before
    said = with_tuning(report, record).tuning.summary
    assert "In 30 steps no validation was better than before, so the weights are unchanged." in said
