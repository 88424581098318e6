"""The fast scorer gives what the harness gives, whatever is masked."""

import copy

import pytest

from moe_compress.errors import DataError, EvaluationError, UnsupportedModelError
from moe_compress.evaluation.fast_choice import ChoiceScorer
from moe_compress.evaluation.harness import score_tasks
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.tasks import load_task


def assert_same(found, expected):
    assert [(r.task, r.item, r.answer) for r in found] == [(r.task, r.item, r.answer) for r in expected]
    for result, other in zip(found, expected, strict=True):
        assert result.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe"])
def test_it_agrees_with_the_harness(make_model, tokenizer, benchmark_file, family):
    model = make_model(family)
    tasks = [load_task("quiz", benchmark_file), load_task("few", benchmark_file, limit=2)]
    assert_same(ChoiceScorer(model, tokenizer, tasks).score(), score_tasks(model, tokenizer, tasks))


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10_000])
def test_batches_do_not_matter(model, tokenizer, benchmark_file, tokens_per_batch):
    tasks = [load_task("quiz", benchmark_file)]
    scorer = ChoiceScorer(model, tokenizer, tasks, tokens_per_batch)
    assert_same(scorer.score(), ChoiceScorer(model, tokenizer, tasks).score())


def test_one_scorer_serves_many_masks(model, tokenizer, benchmark_file):
    tasks = [load_task("quiz", benchmark_file)]
    scorer = ChoiceScorer(model, tokenizer, tasks)
    whole = scorer.score()
    with mask_experts(model, [(0, 1, 2), (5, 6, 7)]):
        masked = scorer.score()
        assert_same(masked, score_tasks(model, tokenizer, tasks))
    assert masked != whole
    assert scorer.score() == whole


def test_one_token_choices_need_no_column_of_their_own(model, tokenizer, tmp_path):
    file = tmp_path / "digits.jsonl"
    file.write_text('{"id": "d", "question": "Digit?", "choices": ["1", "2", "7"], "answer": 2}\n')
    tasks = [load_task("digits", file)]
    assert_same(ChoiceScorer(model, tokenizer, tasks).score(), score_tasks(model, tokenizer, tasks))


def test_families_without_masks_of_their_own_are_refused(make_model, tokenizer, benchmark_file):
    with pytest.raises(UnsupportedModelError, match="'gpt_oss'"):
        ChoiceScorer(make_model("gpt_oss"), tokenizer, [load_task("quiz", benchmark_file)])


def test_items_beyond_a_sliding_window_are_refused(make_model, tokenizer, benchmark_file):
    model = make_model("mixtral", sliding_window=24)
    with pytest.raises(DataError, match="the model reads 24 at once"):
        ChoiceScorer(model, tokenizer, [load_task("quiz", benchmark_file)])


def test_weights_that_are_not_numbers_are_no_result(model, tokenizer, benchmark_file):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(EvaluationError, match="task 'quiz'"):
        ChoiceScorer(broken, tokenizer, [load_task("quiz", benchmark_file)]).score()
