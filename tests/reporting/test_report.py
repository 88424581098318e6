"""The page: complete, self-contained, and safe with hostile text."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from moe_compress.reporting import wording
from moe_compress.reporting.content import CompressionReport, Drawing
from moe_compress.reporting.figures import illustrate
from moe_compress.reporting.report import write_html
from moe_compress.reporting.style import PALETTE
from moe_compress.types import PlanBackground, Speed, Throughput

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta", "link", "br", "image", "use", "path", "rect"}


class Page(HTMLParser):
    """Collects tags, attributes and the words a reader sees; refuses tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "text"):
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words).replace("\N{NO-BREAK SPACE}", " ")


def load(
    report: CompressionReport, folder: Path, drawings: Mapping[str, Drawing] | None = None
) -> tuple[str, Page]:
    html = write_html(report, folder / "report.html", drawings).read_text(encoding="utf-8")
    return html, Page(html)


def read(report: CompressionReport, folder: Path) -> Page:
    """Return the page without its figures, which take most of its time."""
    return load(report, folder, {})[1]


@pytest.fixture(scope="module")
def page(report: CompressionReport, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return load(report, tmp_path_factory.mktemp("page"))


def test_nothing_is_loaded_from_anywhere(page: tuple[str, Page]) -> None:
    html, parsed = page
    assert "http:" not in html and "https:" not in html and "//" not in re.sub(r"base64,[\w+/=\s]+", "", html)
    assert not {"script", "iframe", "img", "a"} & {tag for tag, _ in parsed.tags}
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) <= {"#"}
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), target


def test_every_tag_is_closed_and_ids_are_unique(page: tuple[str, Page]) -> None:
    _, parsed = page
    assert parsed.open == []
    ids = Counter(attributes["id"] for _, attributes in parsed.tags if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []


def test_local_references_have_their_target(page: tuple[str, Page]) -> None:
    html, parsed = page
    ids = {attributes.get("id") for _, attributes in parsed.tags}
    used = set(re.findall(r'(?:xlink:href="|url\()#([\w-]+)', html))
    assert used and used <= ids


def test_the_page_defines_every_colour_the_figures_use(page: tuple[str, Page]) -> None:
    html, _ = page
    for name, code in PALETTE.items():
        assert f"--{name}: {code}" in html
    used = set(re.findall(r"var\(--([\w-]+)\)", html))
    assert used <= set(re.findall(r"--([\w-]+):", html))


def test_all_numbers_are_there(report: CompressionReport, page: tuple[str, Page]) -> None:
    text = page[1].text
    numbers = [report.plan.digest, *report.provenance.values(), *wording.flatten(report.parameters).values()]
    for result in report.comparisons.values():
        numbers += [
            str(result.num_items),
            wording.percent(result.baseline_accuracy),
            wording.percent(result.candidate_accuracy),
            wording.points(result.difference),
            wording.points_interval(result.difference_low, result.difference_high),
            wording.percent(result.share_kept),
            wording.percent_interval(result.share_kept_low, result.share_kept_high),
            f"{result.lost} / {result.gained}",
            wording.p_value(result.p_value),
        ]
    for model in (report.baseline, report.candidate):
        numbers += [wording.number(value) for value in model.perplexities.values()]
        numbers += [wording.count(model.num_parameters), wording.size(model.num_bytes)]
    for gate in report.gate_report.outcomes:
        numbers += [gate.name, wording.observed(gate), wording.limit(gate), gate.severity]
    missing = [number for number in numbers if number.replace("\N{NO-BREAK SPACE}", " ") not in text]
    assert missing == []


def test_the_verdict_comes_before_everything(page: tuple[str, Page]) -> None:
    text = page[1].text
    assert text.index("Passed 5 of 6 gates") < text.index("Size and speed") < text.index("Gates Gate")
    assert "Registered as moe-medical version 3 (alias candidate)." in text


def test_speeds_of_every_batch_are_told_with_their_change_or_its_noise(
    report: CompressionReport, tmp_path: Path
) -> None:
    before = Throughput(1.0, 4e9, "gpu", {1: Speed(1000.0)}, {1: Speed(50.0, 0.1)}, 100.0)
    after = Throughput(0.5, 2e9, "gpu", {1: Speed(1250.0)}, {1: Speed(52.0)}, 100.0)
    parsed = read(replace(report, speeds=(before, after)), tmp_path)
    assert "Reading 1 sequence, tokens per second 1.00 k 1.25 k +25.0 %" in parsed.text
    assert "Writing 1 sequence, tokens per second 50 52 within noise of 10 %" in parsed.text


def test_the_verdict_of_a_failed_gate_names_value_and_limit(
    failed_report: CompressionReport, tmp_path: Path
) -> None:
    parsed = read(failed_report, tmp_path)
    verdict = parsed.text[: parsed.text.index("Size and speed")]
    assert "Failed 1 of 6 gates" in verdict
    assert "domain_quality_kept : observed 0.8127 , limit at least 0.95" in verdict
    assert "Nothing was registered." in verdict


def test_hostile_text_stays_text(report: CompressionReport, tmp_path: Path) -> None:
    gates = replace(
        report.gate_report,
        domain=HOSTILE,
        outcomes=tuple(replace(o, name=HOSTILE, description=HOSTILE) for o in report.gate_report.outcomes),
    )
    hostile = replace(
        report,
        domain=HOSTILE,
        gate_report=gates,
        comparisons={HOSTILE: replace(report.comparisons["medical"], task=HOSTILE)},
        provenance={HOSTILE: HOSTILE, "base_id": HOSTILE, "git_commit": HOSTILE},
        parameters={HOSTILE: {HOSTILE: HOSTILE}},
        flips=(replace(report.flips[0], task=HOSTILE, question=HOSTILE, choices=(HOSTILE,) * 4),),
        other_plans={HOSTILE * 2: report.other_plans["code"]},
        registered=HOSTILE,
        model_uri=HOSTILE,
        checkpoint=HOSTILE,
        data_docs=HOSTILE,
    )
    html, parsed = load(hostile, tmp_path)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in parsed.tags}
    assert HOSTILE in parsed.text


def test_the_page_says_whether_there_were_enough_demonstrations(page: tuple[str, Page]) -> None:
    text = page[1].text
    assert "Were there enough demonstrations?" in text
    # Shared experts per layer, 2 J / (1 + J): 75, 100, 87.5 and 75 %.
    assert "agree on 84.4 % of the experts to keep (50.0 % by chance)" in text
    assert "agree least in layer 1: 75.0 %" in text
    assert "Jaccard index of the kept experts 0.744, rank correlation of the scores 0.875" in text


def test_outputs_that_were_not_collected_are_asked_for(report: CompressionReport, tmp_path: Path) -> None:
    html, parsed = load(replace(report, background=PlanBackground()), tmp_path)
    assert "put embedding on the list collect.statistics and run again" in parsed.text
    assert "How alike experts are" in parsed.text and "clustering" not in html


def test_a_plan_that_was_given_blames_no_missing_statistics(report, tmp_path):
    given = replace(report, background=PlanBackground(), provenance={**report.provenance, "plan_from": "mask.json"})
    _, parsed = load(given, tmp_path)
    assert "This plan was not made from one domain's statistics" in parsed.text
    assert "collect.statistics" not in parsed.text


def test_figures_have_their_words_beside_them(report: CompressionReport, page: tuple[str, Page]) -> None:
    html, parsed = page
    labels = [attributes["aria-label"] for _, attributes in parsed.tags if attributes.get("role") == "img"]
    figures = illustrate(report)
    assert sorted(labels) == sorted([figure.alt for figure in figures] * 2)
    for figure in figures:
        assert figure.shows in unescape(html) and figure.means in unescape(html)


def test_one_number_for_every_layer_is_said_and_not_drawn(page: tuple[str, Page]) -> None:
    assert "Every layer keeps 32 experts: the budget is the same for all layers" in page[1].text


def test_sections_without_content_are_left_out(report: CompressionReport, tmp_path: Path) -> None:
    bare = replace(
        report,
        plan=replace(report.plan, scores=None),
        comparisons={},
        gate_report=replace(report.gate_report, outcomes=()),
        parameters={},
        provenance={},
        flips=(),
        agreement=None,
        other_plans={},
        registered=None,
        model_uri=None,
        checkpoint=None,
        data_docs=None,
    )
    _, parsed = load(bare, tmp_path)
    assert "Not validated: no gates were run" in parsed.text
    for heading in ("enough demonstrations", "Overlap", "Answers that changed", "parameter", "MLflow"):
        assert heading not in parsed.text


def test_more_flips_than_fit_are_counted(report: CompressionReport, tmp_path: Path) -> None:
    parsed = read(replace(report, flips=report.flips * 5), tmp_path)
    assert "the first 12 of 20" in parsed.text
    assert parsed.tags.count(("article", {})) == 12


def test_an_existing_page_is_replaced_and_nothing_else_left(report: CompressionReport, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("old")
    write_html(report, tmp_path / "report.html", {})
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8") != "old"


def test_the_page_says_who_can_load_it(report: CompressionReport, page: tuple[str, Page], tmp_path: Path) -> None:
    _, parsed = page
    assert "transformers loads run Nothing was found against it." in parsed.text
    assert "vLLM loads not run 32 <experts> take a general kernel a/b.cu" in parsed.text
    assert "llama.cpp misreads not run" in parsed.text
    silent = read(replace(report, compatibility=()), tmp_path)
    assert "Who can load it" not in silent.text
