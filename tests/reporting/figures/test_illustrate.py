"""All figures of a report: which there are, that they are whole, and how large they get."""

import struct
import time
import zlib
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from moe_compress import methods
from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.figures import illustrate, save_figures
from moe_compress.reporting.figures.drawing import as_svg
from moe_compress.reporting.report import write_html
from moe_compress.reporting.style import NARROW, WIDE
from moe_compress.types import Agreement, Budget, ExpertStatistics, MoELayout, PlanBackground

NAMES = [
    "quality",
    "kept_experts",
    "score_cut",
    "score_layers",
    "similarity",
    "similarity_all",
    "trees",
    "demonstrations",
    "domains",
    "demonstrations_overlap",
    "overlap",
]


def check_png(content: bytes) -> None:
    """Check the signature, every chunk's sum, and the end."""
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    place, kind = 8, b""
    while place < len(content):
        (length,) = struct.unpack_from(">I", content, place)
        kind, body = content[place + 4 : place + 8], content[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", content, place + 8 + length) == (zlib.crc32(body),)
        place += 12 + length
    assert kind == b"IEND"


def test_save_figures_writes_png_and_nothing_else(report: CompressionReport, tmp_path: Path) -> None:
    paths = save_figures(illustrate(report), tmp_path / "new")
    assert [path.stem for path in paths] == NAMES
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    for path in paths:
        check_png(path.read_bytes())


def test_a_bare_report_has_the_one_figure_it_can(report: CompressionReport, tmp_path: Path) -> None:
    bare = replace(
        report,
        plan=replace(report.plan, scores=None),
        comparisons={},
        agreement=None,
        background=PlanBackground(),
        other_plans={},
    )
    assert [path.name for path in save_figures(illustrate(bare), tmp_path)] == ["kept_experts.png"]


def test_every_figure_has_its_words_and_is_one_whole_svg(report: CompressionReport) -> None:
    for figure in illustrate(report):
        assert figure.alt and figure.shows.endswith(".") and figure.means.endswith(".")
        for width in (WIDE, NARROW):
            svg = as_svg(figure.draw(width), figure.name).replace("xlink:href", "href")
            root = ElementTree.fromstring(svg)
            assert root.tag == "svg" and float(root.attrib["width"].removesuffix("pt")) <= 72 * width + 1


def grow(report: CompressionReport) -> CompressionReport:
    """Return the report on a model as large as DeepSeek-V3, layers keeping different numbers."""
    layout = MoELayout(layers=tuple(range(3, 61)), num_experts=(256,) * 58, top_k=8, num_groups=8, topk_groups=4)
    rng = np.random.default_rng(0)
    names = ("gate", "norm", "gate_norm", "gate_norm_change", "gate_change")
    sums = {name: rng.gamma(2.0, size=(58, 256)) for name in names}
    sums["embedding"] = rng.normal(size=(58, 256, 32))
    statistics = ExpertStatistics("medical", layout, sums, 100)
    budget = Budget(fraction_dropped=0.5, scope="global")
    shares = tuple(rng.uniform(0.4, 0.9, 58))
    numbers = (1, 2, 5, 10, 25, 50, 200)
    plans = {domain: methods.plan("gating_score", statistics, budget, 0) for domain in ("code", "math", "law")}
    return replace(
        report,
        plan=methods.plan("easy_ep", statistics, budget, 0),
        background=methods.describe_background("easy_ep", statistics, budget, 0),
        agreement=Agreement(
            layout.layers, shares, shares, dict.fromkeys(numbers, shares), (tuple(np.ones(7)),) * 7, 0.5
        ),
        other_plans=plans,
    )


def test_a_very_large_model_has_a_page_that_can_be_mailed(report: CompressionReport, tmp_path: Path) -> None:
    start = time.process_time()
    page = write_html(grow(report), tmp_path / "report.html")
    assert time.process_time() - start < 60
    assert page.stat().st_size < 1_600_000
    assert page.read_text().count("<figure>") == len(NAMES) + 1
