"""A tiny random model of each family, a tokenizer that splits words, and a few questions."""

import json
from functools import partial

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

QUESTIONS = [
    ("Which gland makes insulin?", ["pancreas", "liver", "the adrenal glands", "spleen"], 0),
    ("2 + 2 * 3 = ?", ["12", "8", "10", "7"], 1),
    ("What does len([]) give?", ["None", "an error that nobody expects", "0", "1"], 2),
    ("Yield {up}, price?", ["up", "down", "same", "no bond has one"], 1),
    ("Is it raining in a place where it never, ever rains at all?", ["yes", "no"], 1),
    ("Name a gas.", ["gold", "iron", "neon", "lead and tin"], 2),
]
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
}
SOFTMAX = {"norm_topk_prob": True, "moe_intermediate_size": 12, "intermediate_size": 12}
SIGMOID = SOFTMAX | {
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.5,
}
FAMILIES = {
    "mixtral": {"intermediate_size": 12},
    "olmoe": SOFTMAX | {"num_key_value_heads": 2},
    "qwen2_moe": SOFTMAX | {"shared_expert_intermediate_size": 8},
    "qwen3_moe": SOFTMAX | {"head_dim": 8, "mlp_only_layers": [1]},
    "glm4_moe": SIGMOID | {"head_dim": 8},
    "dots1": SIGMOID | {"head_dim": 8},
    "deepseek_v3": SIGMOID
    | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
    | {"num_key_value_heads": 2},
    "gpt_oss": {"intermediate_size": 12, "head_dim": 8},
}
COUNT_KEY = {"mixtral": "num_local_experts", "gpt_oss": "num_local_experts"} | dict.fromkeys(
    ("glm4_moe", "dots1", "deepseek_v3"), "n_routed_experts"
)


def build_model(tokenizer, family="qwen3_moe", num_experts=8, seed=0, **overrides):
    """Build a family's model with random weights and correction biases."""
    torch.manual_seed(seed)
    settings = COMMON | FAMILIES[family] | {COUNT_KEY.get(family, "num_experts"): num_experts}
    config = CONFIG_MAPPING[family](**(settings | {"vocab_size": len(tokenizer)} | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.2)
    return model


def train_tokenizer():
    """Return a byte-level tokenizer whose words are mostly two or three tokens."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    texts = [f"Question: {question}\nAnswer: {' '.join(choices)}" for question, choices, _ in QUESTIONS]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<end>")


@pytest.fixture(scope="session")
def make_model(tokenizer):
    """Return `build_model` with the tokenizer given."""
    return partial(build_model, tokenizer)


@pytest.fixture(scope="session")
def tokenizer():
    """The tokenizer of all these tests."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def model(make_model):
    """The model of tests that need any model; they leave it as it is."""
    return make_model()


@pytest.fixture
def folder(tmp_path, model, tokenizer):
    """A checkpoint folder of `model`."""
    model.save_pretrained(tmp_path / "checkpoint")
    tokenizer.save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def benchmark_file(tmp_path):
    """The questions as JSON lines."""
    rows = [
        {"id": f"q{number}", "kind": "any", "question": question, "choices": choices, "answer": answer}
        for number, (question, choices, answer) in enumerate(QUESTIONS)
    ]
    file = tmp_path / "benchmark.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return file
