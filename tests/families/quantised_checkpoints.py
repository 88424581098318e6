"""Tiny quantised checkpoints, written by hand as their publishers lay them out."""

import json

import torch
from safetensors.torch import save_file
from tests.families.conftest import build

NUM_EXPERTS = 8
WIDE = {  # DeepSeek-V3's own 576 rows of the latent projection: 512 + 64, five rows of blocks
    "hidden_size": 128,
    "intermediate_size": 256,
    "moe_intermediate_size": 128,
    "q_lora_rank": 128,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 64,
    "v_head_dim": 64,
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}


def quantise_fp8(weight, block=(128, 128)):
    """Return FP8 codes and one float32 scale per block; the last block of a row or column may be cut."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // block[0]), -(-columns // block[1]))
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            place = slice(i * block[0], (i + 1) * block[0]), slice(j * block[1], (j + 1) * block[1])
            scales[i, j] = weight[place].abs().max() / 448
            codes[place] = (weight[place] / scales[i, j]).to(torch.float8_e4m3fn)
    return codes, scales


def dequantise_fp8(codes, scales, block=(128, 128)):
    """Return the float32 weight, block by block."""
    values = codes.float()
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            values[i * block[0] : (i + 1) * block[0], j * block[1] : (j + 1) * block[1]] *= scales[i, j].float()
    return values


def quantise_mxfp4(values):
    """Return `[E, rows, D / 32, 16]` codes and `[E, rows, D / 32]` scales of a fused weight `[E, D, rows]`."""
    groups = values.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1))) - 2
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    scaled = groups / torch.exp2(exponents)[..., None]
    codes = (scaled[..., None] - table).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponents + 127).to(torch.uint8)


def unfuse(state):
    """Return a model's state with one tensor per expert and matrix, as these families are published."""
    tensors = {}
    for name, tensor in state.items():
        stem, _, word = name.rpartition(".")
        if word == "gate_up_proj":
            for expert, matrix in enumerate(tensor):
                gate, up = matrix.chunk(2)
                tensors[f"{stem}.{expert}.gate_proj.weight"] = gate.clone()
                tensors[f"{stem}.{expert}.up_proj.weight"] = up.clone()
        elif word == "down_proj" and tensor.ndim == 3:
            tensors |= {f"{stem}.{expert}.down_proj.weight": matrix.clone() for expert, matrix in enumerate(tensor)}
        else:
            tensors[name] = tensor.clone()
    return tensors


def is_quantised(name):
    return name.endswith("_proj.weight") or "_proj_with_mqa" in name or name.endswith(("q_a_proj", "q_b_proj"))


def encode_fp8(tensors, keep=(), suffix="weight_scale_inv", quantise=quantise_fp8):
    """Return tensors with projections as codes and scales, but for modules in `keep`."""
    encoded = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if is_quantised(name) and module not in keep:
            encoded[name], encoded[f"{module}.{suffix}"] = quantise(tensor.float())
        else:
            encoded[name] = tensor if "correction_bias" in name else tensor.bfloat16()
    return encoded


def make_model(family, **changes):
    torch.manual_seed(11)
    model = build(family, **changes)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(("bias", "sinks")):
                tensor.copy_(0.1 * torch.randn_like(tensor))
    return model


def save(folder, config, tensors, shards=3):
    """Save in several files with an index, codes and scales of a weight apart from each other."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_config(model, **changes):
    return model.config.to_dict() | {"architectures": [type(model).__name__], "dtype": "bfloat16"} | changes
