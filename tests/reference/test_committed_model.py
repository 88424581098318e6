"""The model that ships: stock, small, skilled, and with experts of its own for each domain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from moe_compress.reference import measure

DATA = Path(__file__).parents[2] / "data" / "01_raw"
NUM_QUESTIONS = 160


def read(domain, split, number):
    lines = (DATA / "domains" / domain / f"{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[:number]]


@pytest.fixture(scope="module")
def subject():
    return measure.load_model(DATA / "reference_model")


def share_right(subject, domain):
    rows = read(domain, "benchmark", NUM_QUESTIONS)
    return measure.accuracy_by_kind(rows, measure.answers(subject, rows))["all"].share


def test_stock_transformers_loads_every_tensor():
    _, report = AutoModelForCausalLM.from_pretrained(DATA / "reference_model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert (DATA / "reference_model" / "model.safetensors").stat().st_size < 16 * 2**20


def test_medical_skill_lives_in_medical_experts(subject):
    routing = {
        domain: measure.routing_LE(subject, [row["text"] for row in read(domain, "calibration", 40)])
        for domain in ("medical", "math")
    }
    half = subject.model.config.num_experts // 2
    right = {"all": share_right(subject, "medical")}
    for domain, shares_LE in routing.items():
        with measure.only_experts(subject.model, measure.best_experts(shares_LE, half)):
            right[domain] = share_right(subject, "medical")
    assert right["all"] > 0.65
    assert right["medical"] > right["all"] - 0.15
    assert right["math"] < right["all"] - 0.25
