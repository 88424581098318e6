"""What is written is greedy and as long as was asked, whatever a checkpoint's own generation config says."""

import json

import pytest
import torch
from datasets import Dataset, DatasetDict
from tests.evaluation.public_rows import definitions, in_memory

from moe_compress.evaluation.benchmarks import BenchmarkRequest
from moe_compress.evaluation.generation import continue_texts
from moe_compress.evaluation.language_models import open_transformers
from moe_compress.evaluation.loading import load_stock
from moe_compress.evaluation.public import ask_benchmarks

PROMPTS = ["alpha", "beta gamma delta alpha beta"]


@pytest.fixture
def own_settings(folder):
    """The checkpoint with a generation config as published ones have them, and its model as loaded without."""
    plain = load_stock(folder, "cpu")
    file = folder / "generation_config.json"
    said = {"do_sample": True, "temperature": 0.7, "top_k": 5, "max_new_tokens": 12}
    penalties = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "min_new_tokens": 9}
    file.write_text(json.dumps(json.loads(file.read_text()) | said | penalties))
    return plain, load_stock(folder, "cpu")


def test_texts_are_continued_without_a_checkpoints_own_penalties(own_settings):
    plain, own = (
        continue_texts(stock.model, stock.tokenizer, PROMPTS, max_new_tokens=20) for stock in own_settings
    )
    assert own == plain


def test_a_benchmark_is_written_to_its_own_limit_without_a_checkpoints_penalties(own_settings):
    rows = DatasetDict({"test": Dataset.from_list([{"problem": text, "answer": "1"} for text in PROMPTS])})
    limit = {"until": ["never"], "do_sample": False, "max_gen_toks": 4}
    benchmark = in_memory(definitions()["aime25"], rows, generation_kwargs=limit)
    plain, own = (
        ask_benchmarks(open_transformers(stock, 2), BenchmarkRequest({"aime25": benchmark}))
        for stock in own_settings
    )
    assert own == plain
    assert all(0 < len(item.text.split()) <= 4 for item in own[0])


def test_the_tokens_a_checkpoint_ends_texts_with_stay(folder):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [0, 5], "pad_token_id": 3, "bos_token_id": 2}))
    kept = load_stock(folder, "cpu").model.generation_config
    assert (kept.eos_token_id, kept.pad_token_id, kept.bos_token_id) == ([0, 5], 3, 2)


def test_a_prompt_too_long_is_cut_on_the_left_so_that_an_answer_fits(model, tokenizer):
    prompt = "alpha beta gamma delta epsilon " * 40
    ids_BS = torch.tensor([tokenizer(prompt)["input_ids"]])
    assert ids_BS.shape[1] > model.config.max_position_embeddings
    ids_BS = ids_BS[:, 6 - model.config.max_position_embeddings :]
    written = []
    for _ in range(6):
        with torch.inference_mode():
            token_B = model(ids_BS).logits[:, -1].argmax(dim=-1)
        ids_BS = torch.cat([ids_BS, token_B[:, None]], dim=1)
        written.append(int(token_B))
    assert tokenizer.eos_token_id not in written
    (found,) = continue_texts(model, tokenizer, [prompt], max_new_tokens=6)
    assert list(found.token_ids) == written


def test_where_the_limit_fills_the_context_a_prompt_keeps_its_last_token(model, tokenizer):
    long, short = continue_texts(model, tokenizer, ["beta gamma delta", "a"], max_new_tokens=96)
    assert len(tokenizer("a")["input_ids"]) == 1 and long == short
