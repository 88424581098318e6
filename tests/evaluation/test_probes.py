"""Loops and repetition by hand, and what a model writes against its own stock generation."""

import pytest
import torch

from moe_compress.evaluation.generation import continue_texts
from moe_compress.evaluation.probes import is_loop, repetition, write_freely
from moe_compress.evaluation.tasks import BenchmarkItem, BenchmarkTask


@pytest.mark.parametrize(
    ("tokens", "loops"),
    [
        ([], False),
        (list(range(60)), False),
        ([7] * 12, True),
        ([7] * 11, False),  # an ellipsis, not a loop
        (list(range(20)) + [1, 2, 3, 4] * 3, True),
        (list(range(20)) + [1, 2, 3, 4] * 2, False),  # said twice only
        (list(range(20)) + [1, 2, 3, 4, 5] * 3 + [1, 2], True),  # cut in the middle of a repeat
        ([1, 2, 3, 4] * 10 + [9], False),  # it got out again
    ],
)
def test_a_loop_is_one_passage_again_and_again_at_the_end(tokens, loops):
    assert is_loop(tokens) is loops


def test_renaming_tokens_changes_no_verdict():
    tokens = [3, 1, 4, 1, 5] + [9, 2, 6] * 5
    assert is_loop(tokens) and is_loop([token * 31 + 7 for token in tokens])


def test_repetition_is_the_share_of_grams_seen_before():
    # abcdabcd has the 4-grams abcd bcda cdab dabc abcd: one of five was there before.
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1, 2, 3]) == 0
    assert repetition([5] * 9) == pytest.approx(5 / 6)


def test_a_batch_writes_what_each_prompt_alone_gets(model, tokenizer):
    prompts = ["alpha", "beta gamma delta alpha beta", "delta"]
    together = continue_texts(model, tokenizer, prompts, max_new_tokens=6)
    for prompt, text in zip(prompts, together, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        expected = ids
        for _ in range(6):
            with torch.inference_mode():
                token = model(expected).logits[:, -1].argmax(dim=-1, keepdim=True)
            expected = torch.cat([expected, token], dim=1)
        new = expected[0, ids.shape[1] :].tolist()
        ends = new.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in new else None
        assert list(text.token_ids) == new[:ends] and text.ended is (ends is not None)


def test_every_task_is_asked_its_first_items_and_the_same_twice(model, tokenizer):
    tasks = [
        BenchmarkTask(name, tuple(BenchmarkItem(f"{name}{i}", "alpha beta", ("a", "b"), 0) for i in range(5)))
        for name in ("one", "two")
    ]
    texts = write_freely(model, tokenizer, tasks, prompts=3, max_new_tokens=5)
    assert [(text.task, text.item) for text in texts] == [(n, f"{n}{i}") for n in ("one", "two") for i in range(3)]
    assert all(text.num_tokens <= 5 for text in texts)
    assert texts == write_freely(model, tokenizer, tasks, prompts=3, max_new_tokens=5)


def test_no_prompts_write_nothing(model, tokenizer):
    task = BenchmarkTask("one", (BenchmarkItem("1", "alpha", ("a", "b"), 0),))
    assert write_freely(model, tokenizer, [task], prompts=0, max_new_tokens=5) == ()
