"""Tiny random models of each family, saved by transformers, and the same pruned in memory by plain slicing."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

NUM_EXPERTS = 8
COMMON = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SIGMOID = {
    "n_routed_experts": NUM_EXPERTS,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
    "intermediate_size": 32,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
}
SOFTMAX = {"norm_topk_prob": True, "moe_intermediate_size": 24, "intermediate_size": 24}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
FAMILIES = {
    "mixtral": {"num_local_experts": NUM_EXPERTS, "intermediate_size": 24},
    "qwen2_moe": {"num_experts": NUM_EXPERTS, "shared_expert_intermediate_size": 8} | SOFTMAX,
    "qwen3_moe": {"num_experts": NUM_EXPERTS, "head_dim": 8, "mlp_only_layers": [1]} | SOFTMAX,
    "olmoe": {"num_experts": NUM_EXPERTS} | SOFTMAX,
    "deepseek_v3": SIGMOID | LATENT,
    "glm4_moe": SIGMOID | {"head_dim": 8},
    "dots1": SIGMOID | {"head_dim": 8},
    "gpt_oss": {"num_local_experts": NUM_EXPERTS, "intermediate_size": 24, "head_dim": 8},
    "granitemoe": {"num_local_experts": NUM_EXPERTS, "intermediate_size": 24},
}
EXPERT_INDEXED = re.compile(r"\.(mlp|block_sparse_moe)\.(experts|gate|router)\.")


@dataclass(frozen=True)
class Tiny:
    """A tiny model of one family, and the folder transformers saved it in."""

    family: str
    model: torch.nn.Module
    folder: Path

    @property
    def moe_layers(self):
        names = (re.match(r"model\.layers\.(\d+)\.(mlp|block_sparse_moe)\.experts\.", n) for n in self.state)
        return sorted({int(match[1]) for match in names if match})

    @property
    def state(self):
        return self.model.state_dict()

    def sliced(self, kept, **changes):
        """Return the model with only some experts, by slicing in memory; `kept` is layer -> old experts."""
        values = {}
        for name, tensor in self.state.items():
            layer = int(match[1]) if (match := re.search(r"layers\.(\d+)\.", name)) else None
            is_indexed = EXPERT_INDEXED.search(name) and layer in kept
            values[name] = tensor[kept[layer]].clone() if is_indexed else tensor
        count = len(next(iter(kept.values())))
        model = build(self.family, **{count_key(self.family): count}, **changes)
        model.load_state_dict(values, strict=True)
        return model


def count_key(family):
    return next(key for key in FAMILIES[family] if key in ("num_local_experts", "num_experts", "n_routed_experts"))


def build(family, **changes):
    config = CONFIG_MAPPING[family](**(COMMON | FAMILIES[family] | changes))
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


def load(folder):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems
    return model.eval()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Return family -> tiny model, saved once per session."""

    @cache
    def make(family):
        torch.manual_seed(7)
        model = build(family)
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith(("bias", "sinks")):  # zero at start, which would hide a wrong row
                    tensor.copy_(0.1 * torch.randn_like(tensor))
        folder = tmp_path_factory.mktemp(family) / "model"
        model.save_pretrained(folder, max_shard_size="60KB")
        return Tiny(family, model, folder)

    return make


@pytest.fixture(scope="session")
def tokens():
    return torch.randint(3, 64, (2, 9), generator=torch.Generator().manual_seed(3))
