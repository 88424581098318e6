"""A reference model small enough to train in a second."""

from __future__ import annotations

import numpy as np
import pytest

from moe_compress.reference.packing import PackedSequences
from moe_compress.reference.train import TrainingSettings

TINY = {
    "model_type": "qwen3_moe",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "moe_intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}


@pytest.fixture
def tiny_config():
    return dict(TINY)


@pytest.fixture
def sequences():
    rng = np.random.default_rng(3)
    tokens = rng.integers(2, 64, size=(24, 16), dtype=np.int32)
    tokens[::3, 12:] = 1
    return PackedSequences(tokens, np.zeros(24, dtype=np.int64), padding=1)


@pytest.fixture
def settings():
    return TrainingSettings(
        steps=6,
        batch_size=4,
        workers=1,
        learning_rate=1e-2,
        warmup_steps=2,
        weight_decay=0.1,
        balance=1e-2,
        clip=1.0,
        seed=5,
        checkpoint_seconds=0.0,
    )
