"""The card as the hub's own library reads it, offline."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from moe_compress.reporting.content import CompressionReport
from moe_compress.reporting.model_card import as_markdown, write_model_card

BASE_CARD = """---
license: other
license_name: example-licence
license_link: LICENSE
language:
- en
pipeline_tag: text-generation
model-index:
- broken
---
# Base
"""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_metadata_is_what_the_hub_reads(report: CompressionReport, tmp_path: Path) -> None:
    data = ModelCard.load(write_model_card(report, tmp_path)).data
    assert data.base_model == "example-org/moe-base-8m"
    assert data.base_model_relation == "finetune"
    assert data.library_name == "transformers"
    assert data.tags == ["moe", "pruned", "expert-pruning", "easy_ep", "medical"]
    assert {r.dataset_name: r.metric_value for r in data.eval_results} == {
        "medical": 0.79,
        "general": 0.79,
        "finance": 0.74,
        "math": 0.6133,
        "code": 0.6933,
    }
    assert data.license is None


def test_written_answers_are_no_choices_to_the_hub(report: CompressionReport, tmp_path: Path) -> None:
    chosen = report.comparisons["medical"]
    written = replace(chosen, task="gsm8k", chance=0.0)
    told = replace(report, comparisons={"medical": chosen, "gsm8k": written})
    data = ModelCard.load(write_model_card(told, tmp_path)).data
    assert {r.dataset_name: r.task_type for r in data.eval_results} == {
        "medical": "multiple-choice",
        "gsm8k": "text-generation",
    }


def test_the_text_has_the_numbers(failed_report: CompressionReport, tmp_path: Path) -> None:
    text = ModelCard.load(write_model_card(failed_report, tmp_path)).text.replace("\N{NO-BREAK SPACE}", " ")
    assert "# moe-base-8m-medical-32-experts" in text
    assert "Not passed: domain\\_quality\\_kept: observed 0.8127, limit at least 0.95" in text
    assert "| Weights on disk | 16.3 MB | 9.88 MB | \N{MINUS SIGN}39.3 % |" in text
    assert "kedro run --pipelines=prune_medical" in text
    assert failed_report.plan.digest in text


def test_decoded_experts_are_not_said_to_be_the_bases_bytes(report: CompressionReport, tmp_path: Path) -> None:
    claim = "byte-identical to the base model's"
    assert claim in write_model_card(report, tmp_path).read_text()
    for weights in ("keep", "bfloat16"):
        told = replace(report, parameters={**report.parameters, "rewrite": {"weights": weights}})
        assert (claim in write_model_card(told, tmp_path).read_text()) == (weights == "keep")


def test_the_card_says_who_can_load_it(report: CompressionReport, tmp_path: Path) -> None:
    text = ModelCard.load(write_model_card(report, tmp_path)).text
    assert "| transformers, run | loads |  |" in text
    assert r"| vLLM | loads | 32 \<experts\> take a general kernel |" in text
    assert "| llama.cpp | misreads | groups by two |" in text
    silent = replace(report, compatibility=())
    assert "Engine" not in ModelCard.load(write_model_card(silent, tmp_path)).text


def test_the_card_of_uneven_layers_shows_the_loader(report: CompressionReport, tmp_path: Path) -> None:
    groups = (report.plan.groups[0][:24], *report.plan.groups[1:])
    uneven = replace(report, plan=replace(report.plan, groups=groups))
    text = ModelCard.load(write_model_card(uneven, tmp_path)).text
    assert "Stock transformers reads one number for all layers and refuses this folder" in text
    assert 'import moe_compress\nmodel = moe_compress.load_model("path/to/this/folder", dtype="auto")' in text
    assert "AutoModelForCausalLM" not in text and "vllm serve" not in text


def test_licence_and_language_come_from_the_bases_card(report: CompressionReport, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(BASE_CARD)
    data = ModelCard.load(write_model_card(report, tmp_path / "new", base)).data
    assert (data.license, data.license_name, data.license_link) == ("other", "example-licence", "LICENSE")
    assert data.language == ["en"]
    assert data.base_model == "example-org/moe-base-8m"


def test_licence_from_provenance_where_the_base_has_no_card(report: CompressionReport, tmp_path: Path) -> None:
    licensed = replace(report, provenance={**report.provenance, "license": "apache-2.0"})
    card = ModelCard.load(write_model_card(licensed, tmp_path, base_folder=tmp_path / "nowhere"))
    assert card.data.license == "apache-2.0"
    assert "apache-2.0, the base model's." in card.text


@pytest.mark.parametrize("base_id", ["data/01_raw/reference_model", "/models/base", "reference_model", "a b/c"])
def test_a_local_folder_is_no_base_model_of_the_hub(
    report: CompressionReport, tmp_path: Path, base_id: str
) -> None:
    local = replace(report, provenance={"base_id": base_id})
    data = ModelCard.load(write_model_card(local, tmp_path)).data
    assert data.base_model is None
    assert "base_model_relation" not in data.to_dict()


def test_hostile_names_stay_text(report: CompressionReport, tmp_path: Path) -> None:
    hostile = "<script> | a\n---\nlicense: mit"
    renamed = replace(
        report,
        domain=hostile,
        gate_report=replace(report.gate_report, domain=hostile),
        comparisons={hostile: replace(report.comparisons["medical"], task=hostile)},
        provenance={hostile: hostile},
    )
    card = ModelCard.load(write_model_card(renamed, tmp_path))
    assert card.data.license is None
    assert card.data.tags[-1] == hostile
    assert "<script" not in card.text.replace("\\<script", "").partition("~~~")[0]


def test_as_markdown_escapes_what_has_a_meaning() -> None:
    assert as_markdown("a_b | *c*\n<d>") == r"a\_b \| \*c\* \<d\>"
