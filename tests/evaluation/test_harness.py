"""The harness gives each choice the likelihood that the definition, read literally, gives it."""

import copy
import json
import socket
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from moe_compress.errors import DataError, EvaluationError, ParameterError
from moe_compress.evaluation.evaluate import evaluate_checkpoint
from moe_compress.evaluation.harness import score_tasks
from moe_compress.evaluation.loading import load_stock
from moe_compress.evaluation.tasks import load_task

RAW = Path(__file__).parents[2] / "data" / "01_raw"


def slow_log_likelihood(model, tokenizer, context, continuation):
    """Sum the log-probability of each token after the context, one forward pass for one choice."""
    ids = tokenizer(context + continuation)["input_ids"]
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    start = len(tokenizer(context)["input_ids"])
    return sum(log_probabilities[at - 1, ids[at]].item() for at in range(start, len(ids)))


def test_log_likelihoods_are_those_of_the_definition(model, tokenizer, benchmark_file):
    task = load_task("quiz", benchmark_file)
    results = score_tasks(model, tokenizer, [task], batch_size=4)
    assert [result.item for result in results] == [item.id for item in task.items]
    for item, result in zip(task.items, results, strict=True):
        expected = [slow_log_likelihood(model, tokenizer, item.context, text) for text in item.continuations]
        assert result.log_likelihoods == pytest.approx(expected, abs=1e-4)
        assert result.chosen == expected.index(max(expected))
        assert result.answer == item.answer


def test_the_harness_asked_directly_says_the_same_of_the_embedded_model(tmp_path):
    task = load_task("medical", RAW / "domains/medical/benchmark.jsonl", limit=100, seed=42)
    ours = evaluate_checkpoint(RAW / "reference_model", [task], {}, device="cpu")
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in task.rows()))
    (tmp_path / "task.yaml").write_text(
        f"""
        task: medical_mcq
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {tmp_path}}}
        test_split: test
        output_type: multiple_choice
        doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
        doc_to_choice: "{{{{choices}}}}"
        doc_to_target: answer
        metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
        """
    )
    theirs = simple_evaluate(
        "hf",
        {"pretrained": str(RAW / "reference_model"), "dtype": "float32"},
        ["medical_mcq"],
        task_manager=TaskManager(include_defaults=False, include_path=str(tmp_path)),
        batch_size=16,
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    right = sum(item.is_correct for item in ours.items)
    assert theirs["results"]["medical_mcq"]["acc,none"] == right / 100
    for item, sample in zip(ours.items, theirs["samples"]["medical_mcq"], strict=True):
        assert (item.item, item.is_correct) == (sample["doc"]["id"], sample["acc"] == 1)
        assert item.log_likelihoods == pytest.approx([said[0] for said in sample["filtered_resps"]], abs=1e-4)


def test_each_task_keeps_its_own_items(model, tokenizer, benchmark_file):
    tasks = [load_task("few", benchmark_file, limit=2), load_task("all", benchmark_file)]
    results = score_tasks(model, tokenizer, tasks)
    assert [(r.task, r.item) for r in results] == [(t.name, i.id) for t in tasks for i in t.items]
    of_all = {r.item: r for r in results if r.task == "all"}
    for result in results[:2]:
        assert result.log_likelihoods == pytest.approx(of_all[result.item].log_likelihoods, abs=1e-4)


def test_a_folder_is_evaluated_offline_and_quietly(folder, benchmark_file, monkeypatch, capfd, model, tokenizer):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    task = load_task("quiz", benchmark_file)
    stock = load_stock(folder, device="cpu")
    results = score_tasks(stock.model, stock.tokenizer, [task])
    assert capfd.readouterr() == ("", "")
    expected = score_tasks(model, tokenizer, [task])
    for result, other in zip(results, expected, strict=True):
        assert result.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-5)


def test_random_state_is_left_alone(model, tokenizer, benchmark_file):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    score_tasks(model, tokenizer, [load_task("quiz", benchmark_file, limit=1)])
    assert torch.rand(1) == expected


def test_weights_that_are_not_numbers_are_no_result(model, tokenizer, benchmark_file):
    broken = copy.deepcopy(model)
    broken.lm_head.weight.data[3] = float("nan")
    with pytest.raises(EvaluationError, match=r"'q0' of task 'quiz'.*check the model's weights"):
        score_tasks(broken, tokenizer, [load_task("quiz", benchmark_file)])


def test_tasks_need_names_of_their_own(model, tokenizer, benchmark_file):
    task = load_task("quiz", benchmark_file)
    with pytest.raises(ParameterError, match="two tasks share a name in quiz, quiz"):
        score_tasks(model, tokenizer, [task, task])


def test_an_item_longer_than_the_context_is_refused_not_cut(make_model, tokenizer, benchmark_file):
    short = make_model(max_position_embeddings=24)
    with pytest.raises(DataError, match="tokens long, but the model reads 24 at once"):
        score_tasks(short, tokenizer, [load_task("quiz", benchmark_file)])
