"""Checkpoints of real shapes and made-up numbers: laid out in seconds, sparse if only names and sizes matter."""

import json
from collections.abc import Iterator, Mapping
from math import ceil, prod
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np

from moe_compress.checkpoint.header import DTYPE_BITS, write_header
from moe_compress.types import CompressionPlan, MoELayout, pruning_groups

_BLOCK_BYTES = 64 << 20


class Spec(NamedTuple):
    """One tensor of a checkpoint to lay out."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Its size."""
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def lay_out(
    folder: Path, config: Mapping[str, Any], specs: list[Spec], num_shards: int, *, is_sparse: bool
) -> None:
    """Write a checkpoint of `num_shards` files of about the same size.

    Args:
        folder: the folder to make.
        config: its `config.json`.
        specs: its tensors in file order.
        num_shards: how many files.
        is_sparse: whether the bytes are holes that cost no disk, or finite random bfloat16 numbers.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    target = sum(spec.num_bytes for spec in specs) / num_shards
    shards: list[list[Spec]] = [[] for _ in range(num_shards)]
    done = 0
    for spec in specs:
        shards[min(int(done / target), num_shards - 1)].append(spec)
        done += spec.num_bytes
    # The exponent's highest bit is clear, so that every number is finite.
    block = (np.random.default_rng(0).integers(0, 1 << 16, _BLOCK_BYTES // 2, dtype=np.uint16) & 0xBFFF).tobytes()
    places = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{num_shards:05d}.safetensors"
        places.update({spec.name: file for spec in shard})
        with (folder / file).open("wb") as stream:
            stream.write(write_header((*spec, spec.num_bytes) for spec in shard))
            end = stream.tell() + sum(spec.num_bytes for spec in shard)
            while not is_sparse and stream.tell() < end:
                stream.write(block[: end - stream.tell()])
            stream.truncate(end)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def plan_half(layout: MoELayout, seed: int = 0) -> CompressionPlan:
    """Return a plan that keeps a random half of every router group of every layer."""
    random = Random(seed)
    groups = []
    for count in layout.num_experts:
        size = count // layout.num_groups
        kept = [
            start + number for start in range(0, count, size) for number in random.sample(range(size), size // 2)
        ]
        groups.append(pruning_groups(kept))
    return CompressionPlan(layout, tuple(groups), "random")


def qwen3_config(num_layers: int, num_experts: int = 64) -> dict[str, Any]:
    """Return the config of a Qwen3-30B-A3B that is less deep and has a small vocabulary."""
    return {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "hidden_size": 2048,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "moe_intermediate_size": 768,
        "intermediate_size": 6144,
        "num_experts": num_experts,
        "num_experts_per_tok": 8,
        "vocab_size": 4096,
        "tie_word_embeddings": False,
    }


def qwen3_tensors(config: Mapping[str, Any]) -> Iterator[Spec]:
    """Yield the tensors of a Qwen3 Mixture-of-Experts checkpoint in bfloat16."""
    hidden, width, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    layer = {
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate": (config["num_experts"], hidden),
    }
    yield Spec("model.embed_tokens.weight", "BF16", (config["vocab_size"], hidden))
    for number in range(config["num_hidden_layers"]):
        for name, shape in layer.items():
            yield Spec(f"model.layers.{number}.{name}.weight", "BF16", shape)
        for expert in range(config["num_experts"]):
            stem = f"model.layers.{number}.mlp.experts.{expert}"
            yield Spec(f"{stem}.down_proj.weight", "BF16", (hidden, width))
            yield Spec(f"{stem}.gate_proj.weight", "BF16", (width, hidden))
            yield Spec(f"{stem}.up_proj.weight", "BF16", (width, hidden))
    yield Spec("model.norm.weight", "BF16", (hidden,))
    yield Spec("lm_head.weight", "BF16", (config["vocab_size"], hidden))


def deepseek_config(num_layers: int = 61, num_experts: int = 256) -> dict[str, Any]:
    """Return the config of a DeepSeek-V3, in FP8 with one multi-token-prediction layer."""
    return {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "hidden_size": 7168,
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "first_k_dense_replace": 3,
        "n_routed_experts": num_experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "vocab_size": 129280,
        "tie_word_embeddings": False,
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
        },
    }


def deepseek_tensors(config: Mapping[str, Any]) -> Iterator[Spec]:
    """Yield the tensors of a DeepSeek-V3 checkpoint: FP8 with a float32 scale for each 128 x 128 block."""
    hidden, vocab, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield Spec("model.embed_tokens.weight", "BF16", (vocab, hidden))
    for number in range(last + config["num_nextn_predict_layers"]):
        stem = f"model.layers.{number}"
        yield from _deepseek_attention(stem, config)
        if number < config["first_k_dense_replace"]:
            yield from _feed_forward(f"{stem}.mlp", hidden, config["intermediate_size"])
        else:
            yield from _deepseek_experts(stem, config)
        if number >= last:
            yield Spec(f"{stem}.embed_tokens.weight", "BF16", (vocab, hidden))
            yield Spec(f"{stem}.enorm.weight", "BF16", (hidden,))
            yield Spec(f"{stem}.hnorm.weight", "BF16", (hidden,))
            yield Spec(f"{stem}.eh_proj.weight", "BF16", (hidden, 2 * hidden))
            yield Spec(f"{stem}.shared_head.norm.weight", "BF16", (hidden,))
            yield Spec(f"{stem}.shared_head.head.weight", "BF16", (vocab, hidden))
    yield Spec("model.norm.weight", "BF16", (hidden,))
    yield Spec("lm_head.weight", "BF16", (vocab, hidden))


def _deepseek_attention(stem: str, config: Mapping[str, Any]) -> Iterator[Spec]:
    hidden, heads, rope = config["hidden_size"], config["num_attention_heads"], config["qk_rope_head_dim"]
    plain, value = config["qk_nope_head_dim"], config["v_head_dim"]
    queries, latent = config["q_lora_rank"], config["kv_lora_rank"]
    yield Spec(f"{stem}.input_layernorm.weight", "BF16", (hidden,))
    yield Spec(f"{stem}.post_attention_layernorm.weight", "BF16", (hidden,))
    yield Spec(f"{stem}.self_attn.q_a_layernorm.weight", "BF16", (queries,))
    yield Spec(f"{stem}.self_attn.kv_a_layernorm.weight", "BF16", (latent,))
    yield from _in_fp8(f"{stem}.self_attn.q_a_proj", queries, hidden)
    yield from _in_fp8(f"{stem}.self_attn.q_b_proj", heads * (plain + rope), queries)
    yield from _in_fp8(f"{stem}.self_attn.kv_a_proj_with_mqa", latent + rope, hidden)
    yield from _in_fp8(f"{stem}.self_attn.kv_b_proj", heads * (plain + value), latent)
    yield from _in_fp8(f"{stem}.self_attn.o_proj", hidden, heads * value)


def _deepseek_experts(stem: str, config: Mapping[str, Any]) -> Iterator[Spec]:
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    for expert in range(config["n_routed_experts"]):
        yield from _feed_forward(f"{stem}.mlp.experts.{expert}", hidden, width)
    yield from _feed_forward(f"{stem}.mlp.shared_experts", hidden, width * config["n_shared_experts"])
    yield Spec(f"{stem}.mlp.gate.weight", "BF16", (config["n_routed_experts"], hidden))
    yield Spec(f"{stem}.mlp.gate.e_score_correction_bias", "F32", (config["n_routed_experts"],))


def _feed_forward(stem: str, hidden: int, width: int) -> Iterator[Spec]:
    yield from _in_fp8(f"{stem}.down_proj", hidden, width)
    yield from _in_fp8(f"{stem}.gate_proj", width, hidden)
    yield from _in_fp8(f"{stem}.up_proj", width, hidden)


def _in_fp8(stem: str, rows: int, columns: int) -> Iterator[Spec]:
    yield Spec(f"{stem}.weight", "F8_E4M3", (rows, columns))
    yield Spec(f"{stem}.weight_scale_inv", "F32", (ceil(rows / 128), ceil(columns / 128)))
