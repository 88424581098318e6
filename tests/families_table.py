"""The page of families, from what is derived now and from the contract's own run.

`python -m tests.families_table` runs the contract of every family and, when it holds, writes `docs/families.md`.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.families.conftest import REFUSED
from tests.tiny_configs import FAMILIES
from tests.tiny_families import save

from moe_compress.checkpoint.index import read_index
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.building import build_meta_model
from moe_compress.families.derive import derive_tensor_map

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
CONTRACT = ("tests/families/test_every_family.py", "tests/families/test_layouts.py")
OUTSIDE = {
    "diffusion_gemma": "denoises; experts in two stacks of layers",
    "doge": "experts are single neurons, found by a product of two keys",
    "nllb-moe": "encoder and decoder",
    "qwen3_omni_moe": "speaks; its `thinker` alone is `qwen3_omni_moe_thinker`",
    "switch_transformers": "encoder and decoder",
}
HEAD = """# Families

Every text family of transformers that has routed experts, as `python -m tests.families_table` found it. A family
*passes* when, on a tiny random model of it saved by transformers:

- every tensor has one role;
- the pruned files load with no missing, unexpected or mismatched tensor, and are, bit by bit, the model pruned in
  memory;
- experts that no token chooses can go without a change of the logits, to the bit, or to 1e-5 where the router takes
  the softmax before it chooses;
- merging twins is pruning one of them, and other merges are the weighted mean;
- in `config.json` nothing changes but the number of experts, under every name it has.

A layer for multi-token prediction (MTP) behind the last one, where transformers knows of one, and experts in FP8
are tried by names and shapes; what is then written has tests of its own, as have experts in MXFP4 (`gpt_oss`).
`deepseek_v4` is refused when it has layers that look experts up by token id (`tid2eid`): an expert that goes would
leave those tokens none. Llama-4 Maverick in FP8 by compressed-tensors, with a tensor for each expert, is refused:
transformers has its experts fused.

| Family | Experts on disk | Router's vectors | Experts' biases | Groups | Shared experts | MTP | FP8 | Outcome |
|---|---|---|---|---|---|---|---|---|
"""
NO = "-"
PREDICTION_LAYERS = (42, 45, 46, 47, 61, 78, 80)  # the places behind the last layer in published models
PREDICTION_PREFIXES = ("mtp.layers.0.", "model.mtp.layers.0.", "model.mtp_layers.0.")


@dataclass(frozen=True)
class Row:
    """What is known of one family from names and shapes."""

    family: str
    cells: tuple[str, ...]
    refused: str | None

    def __str__(self):
        outcome = f"refused: {self.refused}" if self.refused else "passes"
        return f"| `{self.family}` | {' | '.join(self.cells)} | {outcome} |"


def describe(family, folder):
    """Return the row of a family whose tiny model is in a folder."""
    index = read_index(folder)
    config, shapes = index.config, index.shapes
    try:
        found = derive_tensor_map(config, shapes)
    except UnsupportedModelError as error:
        return Row(
            family, (NO,) * 7, re.split(r"[:;] ", str(error).removeprefix(f"'{family}' cannot be compressed: "))[0]
        )
    vectors = [name for name, role in found.roles.items() if role.is_router and _is_vector(shapes[name])]
    biases = [
        name
        for name, role in found.roles.items()
        if role.kind == "expert_axis"
        and not role.is_router
        and role.rows_per_expert == 1
        and len(shapes[name]) == 2
    ]
    shared = any(re.search(r"shared?_(expert|mlp|w)", name) for name in shapes)
    cells = (
        "one tensor each" if found.expert_spans else "fused",
        _list_endings(vectors),
        _list_endings(biases),
        _list_endings(_derive_groups(config, shapes)),
        "yes" if shared else NO,
        _try_prediction_layer(config, found, shapes),
        "yes" if _understands(*_as_fp8(config, found, shapes)) else NO,
    )
    return Row(family, cells, None)


def _is_vector(shape):
    return sum(size > 1 for size in shape) == 1


def _list_endings(names):
    return ", ".join(f"`{ending}`" for ending in sorted({name.rpartition(".")[2] for name in names})) or NO


def _derive_groups(config, shapes):
    """Return the keys of the number of groups, had the config two of them."""
    place = config.get("text_config", config)
    keys = ("n_group", "num_expert_group")
    groups = {key: 2 for key in keys if key in place} | {"topk_group": 1, "topk_method": "group_limited_greedy"}
    changed = {**config, "text_config": place | groups} if place is not config else {**config, **groups}
    return derive_tensor_map(changed, shapes).group_keys


def _try_prediction_layer(config, found, shapes):
    """Return what becomes of a copy of the last MoE layer, behind it under a name that transformers passes over."""
    ignored = build_meta_model(config)._keys_to_ignore_on_load_unexpected or ()
    last = re.compile(rf"^(.*?(?:layers|blocks)\.){found.layout.layers[-1]}\.")
    stem = next(match[1] for name in shapes if (match := last.match(name)) and "vis" not in name)
    for prefix in (*(f"{stem}{number}." for number in PREDICTION_LAYERS), *PREDICTION_PREFIXES):
        if any(re.search(pattern, f"{prefix}mlp.") for pattern in ignored):
            copies = {last.sub(prefix, name): shape for name, shape in shapes.items() if name.startswith(stem)}
            with_copies = derive_tensor_map(config, {**copies, **shapes})
            has_experts = any(with_copies.roles[name].kind != "untouched" for name in with_copies.mtp_tensors)
            return "pruned or dropped" if has_experts else "dropped"
    return NO


def _as_fp8(config, found, shapes):
    """Return config and shapes of the checkpoint with experts in 8 bits, a scale for each 4 by 4 weights."""
    scales = {}
    for name, role in found.roles.items():
        if role.kind == "expert" or (role.kind == "expert_axis" and len(shapes[name]) == 3):
            *rest, rows, columns = shapes[name]
            scales[f"{name}_scale_inv"] = (*rest, -(-rows // 4), -(-columns // 4))
    return {**config, "quantization_config": {"quant_method": "fp8", "weight_block_size": [4, 4]}}, shapes | scales


def _understands(config, shapes):
    try:
        return bool(derive_tensor_map(config, shapes))
    except UnsupportedModelError:
        return False


def format_page(rows):
    """Return the page."""
    table = "".join(f"{row}\n" for row in rows)
    others = "".join(f"- `{family}`: {why}\n" for family, why in OUTSIDE.items())
    return f"{HEAD}{table}\nOutside, because they are no text decoders with experts of their own:\n\n{others}"


def main():
    """Run the contract and write the page if it holds."""
    if subprocess.run([sys.executable, "-m", "pytest", *CONTRACT], check=False).returncode:
        sys.exit("the contract does not hold, so no page was written; mend what failed above")
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for family in sorted(FAMILIES):
            save(family, Path(folder) / family)
            rows.append(describe(family, Path(folder) / family))
    assert {row.family for row in rows if row.refused} == set(REFUSED)
    PAGE.write_text(format_page(rows))


if __name__ == "__main__":
    main()
