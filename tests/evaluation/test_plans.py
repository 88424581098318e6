"""Plans measured under a mask or as models of their own: the same numbers, and those of separate measurements."""

from __future__ import annotations

import copy
import math

import pytest

from moe_compress.evaluation.harness import score_tasks
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.plans import PlanScorer
from moe_compress.evaluation.tasks import load_task

TEXTS = ["Which gland makes insulin and what does it yield?", "Name a gas, iron or gold."]
KEPT = [(0, 1, 2), (5, 6, 7)]


@pytest.fixture
def task(benchmark_file):
    return load_task("quiz", benchmark_file)


def test_the_base_is_no_distance_from_itself(model, tokenizer, task):
    found = PlanScorer(model, tokenizer, task, TEXTS).measure_masked(None, 1000)
    assert found.right == tuple(item.is_correct for item in score_tasks(model, tokenizer, [task]))
    assert found.perplexity == pytest.approx(measure_perplexities(model, tokenizer, {"quiz": TEXTS})["quiz"])
    assert found.kl == pytest.approx(0, abs=1e-5)
    assert found.num_parameters == 1000


def test_a_masked_plan_is_measured_like_a_model_of_its_own(model, tokenizer, task):
    scorer = PlanScorer(model, tokenizer, task, TEXTS)
    masked = scorer.measure_masked(KEPT, 600)
    other = copy.deepcopy(model)
    with mask_experts(other, KEPT):
        assert scorer.measure_model(other, 600) == masked
        assert masked.right == tuple(item.is_correct for item in score_tasks(other, tokenizer, [task]))
    assert masked.kl > 0.01
    assert scorer.measure_masked(None, 1).kl == pytest.approx(0, abs=1e-5)


def test_without_texts_nothing_is_said_of_them(model, tokenizer, task):
    found = PlanScorer(model, tokenizer, task, []).measure_masked(None, 1)
    assert math.isnan(found.perplexity) and math.isnan(found.kl)
    assert len(found.right) == len(task.items)
