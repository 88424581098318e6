"""Eliminations of real layers against the layer itself with experts hidden from its own router, in every family."""

from __future__ import annotations

from contextlib import closing, nullcontext
from itertools import product

import pytest
import torch
from tests import tiny_families
from tests.collection.conftest import (
    assert_same_bits,
    layout_of,
    load_plain,
    make_batch,
    make_domains,
    read_files,
)
from tests.tiny_configs import FAMILIES, TOP_K, VOCABULARY

from moe_compress import methods
from moe_compress.collection.batches import Batch
from moe_compress.collection.expert_layers import find_layers
from moe_compress.collection.layer_sample import _Gathered, _multiply
from moe_compress.collection.observe import observe
from moe_compress.collection.progress import Progress
from moe_compress.collection.resident import collect_resident
from moe_compress.collection.resume import ResumePoint
from moe_compress.collection.streamed import StreamedModel, collect_streamed
from moe_compress.collection.sums import start_sums
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.masking import hide_experts
from moe_compress.types import MoELayout

CPU = torch.device("cpu")
NAMED = {
    "qwen3_moe": {},
    "mixtral": {},
    "gpt_oss": {},
    "glm4_moe": {"routed_scaling_factor": 1.5},
    "qwen2_moe": {"norm_topk_prob": False},
    "minimax": {},
    "ernie4_5_moe": {},
    "deepseek_v2": {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {"n_group": 2, "topk_group": 1, "routed_scaling_factor": 2.5},
}


def tiny_layout(model):
    config, layers = model.config.get_text_config(), find_layers(model)
    groups = getattr(config, "n_group", None) or 1
    counts = tuple(layer.experts.num_experts for layer in layers)
    return MoELayout(tuple(range(len(layers))), counts, TOP_K, groups, getattr(config, "topk_group", None) or 1)


def collect(model, layout, domains, num_tokens=100, error="cosine"):
    reduction = methods.reduction("reconstruct", 0, {"error": error})
    sums = {name: start_sums(layout, own, ("elimination",), num_tokens, reduction) for name, own in domains.items()}
    collect_resident(model, domains, sums, Progress(1, 1))
    return sums


def error_of(model, batch, row, kept, error="cosine"):
    """The error of one layer that keeps some experts, from two forward passes of the model's own code."""
    owner = find_layers(model)[row].owner
    after, read = [], []
    for hidden in (nullcontext(), hide_experts(owner, kept)):

        def inspect(seen_row, forward, inputs, seen, inside):
            if seen_row == row:
                before, added = inside.stream()
                read.append(before.double())
                after.append(added.double())

        with torch.no_grad(), hidden, observe(model, lambda *_: None, inspect) as set_batch:
            set_batch(batch)
            model.base_model(batch.input_ids_BS, attention_mask=batch.mask_BS, use_cache=False)
    assert torch.equal(*read)
    difference = ((after[0] - after[1]) ** 2).sum(dim=1)
    whole = read[0] + after[0]
    if error == "absolute":
        return float(difference.mean())
    if error == "relative":
        return float((difference / (whole**2).sum(dim=1)).mean())
    return float((1 - torch.cosine_similarity(whole, read[0] + after[1], dim=1)).mean())


@pytest.mark.parametrize(
    ("family", "error"),
    [*((family, "cosine") for family in NAMED), *product(("qwen3_moe", "minimax"), ("absolute", "relative"))],
)
def test_every_step_is_the_best_by_trying_all(family, error):
    model = tiny_families.build(family, **NAMED[family])
    batch, layout = make_batch(1, 3, 9, 0), tiny_layout(model)
    statistics = collect(model, layout, {"one": (batch,)}, error=error)["one"].as_statistics("one", {})
    row, size = 1, 8 // layout.num_groups
    rank, curve = statistics["elimination_rank"][row], statistics["elimination_error"][row]
    gone, kept = int(rank.max()), list(range(8))
    assert gone == 8 - (4 if layout.num_groups > 1 else layout.top_k)
    for step in range(gone):
        left = [sum(e // size == group for e in kept) for group in range(layout.num_groups)]
        may_go = [e for e in kept if left[e // size] == max(left)]
        harm = {e: error_of(model, batch, row, [k for k in kept if k != e], error) for e in may_go}
        chosen = int((rank == step).argmax())
        assert harm[chosen] == pytest.approx(min(harm.values()), rel=1e-3, abs=1e-7)
        assert curve[step + 1] == pytest.approx(harm[chosen], rel=1e-3, abs=1e-7)
        kept.remove(chosen)


REFUSALS = {
    "goes through further modules": """
        afmoe axk1 beam flex_olmo gemma4 gemma4_text glm5_next hy_v4 inkling2 inkling2_text kolibri1 muse_spark
        nemotron_h qwen4_exp qwen4_exp_text""",
    "it was not tried": "deepseek_v4 inkling_text inkling_mm_model",
    "cannot be observed": "ernie4_5_vl_moe jetmoe longcat_flash zaya",
    "not handed the choice": "llama4 llama4_text",
    "routes by rules that are not known": "phimoe",
}
REFUSED = {family: reason for reason, families in REFUSALS.items() for family in families.split()}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_in_every_family_the_curve_is_the_models_own_or_is_refused(family):
    model, batch = tiny_families.build(family), make_batch(1, 3, 9, 0)
    if family == "qwen3_omni_moe_thinker":  # its forward looks for places of images, and its config has no ids
        model.config.vision_start_token_id = model.config.audio_start_token_id = VOCABULARY
    try:
        sums = collect(model, tiny_layout(model), {"one": (batch,)})["one"]
    except UnsupportedModelError as refused:
        assert REFUSED.get(family, "nothing") in str(refused)
        return
    assert family not in REFUSED
    statistics = sums.as_statistics("one", {})
    for row in range(len(statistics.layout.layers)):
        rank, curve = statistics["elimination_rank"][row], statistics["elimination_error"][row]
        for step in (1, int(rank.max())):
            kept = [e for e in range(8) if rank[e] >= step]
            assert curve[step] == pytest.approx(error_of(model, batch, row, kept), rel=2e-3, abs=1e-6)


def run_streamed(checkpoint, layout, domains, point):
    streamed = StreamedModel(read_files(checkpoint), torch.float32, CPU)
    reduction = methods.reduction("reconstruct", 0)
    asked = {"one": ("elimination",), "two": ("elimination", "pooled_gram")}
    sums = {name: start_sums(layout, own, asked[name], 20, reduction) for name, own in domains.items()}
    with closing(point):
        collect_streamed(streamed, domains, sums, point, Progress(1, 1))
    return sums


class Killed(Exception):
    pass


def test_streamed_is_resident_and_goes_on_from_where_it_was_killed(checkpoint, tmp_path, monkeypatch):
    folder, domains = checkpoint("qwen3_moe"), make_domains()
    model = load_plain("qwen3_moe", folder, torch.float32)
    layout = layout_of(model)
    expected = {
        name: start_sums(layout, own, asked, 20, methods.reduction("reconstruct", 0))
        for (name, own), asked in zip(
            domains.items(), (("elimination",), ("elimination", "pooled_gram")), strict=True
        )
    }
    collect_resident(model, domains, expected, Progress(1, 1))
    assert_same_bits(run_streamed(folder, layout, domains, ResumePoint(None, "", keep=True)), expected)
    commit = ResumePoint.commit

    def die(self, layer, sums):
        commit(self, layer, sums)
        if layer == 1:
            raise Killed

    monkeypatch.setattr(ResumePoint, "commit", die)
    with pytest.raises(Killed):
        run_streamed(folder, layout, domains, ResumePoint(tmp_path, "a" * 16, keep=False))
    monkeypatch.undo()
    point = ResumePoint(tmp_path, "a" * 16, keep=False)
    assert_same_bits(run_streamed(folder, layout, domains, point), expected)


def test_batches_change_nothing_but_rounding(checkpoint):
    model = load_plain("qwen3_moe", checkpoint("qwen3_moe"), torch.float32)
    whole = make_batch(1, 4, 9, 0)
    parts = tuple(
        Batch(whole.input_ids_BS[rows], whole.mask_BS[rows], whole.demonstrations_B[rows])
        for rows in ([2, 3], [0], [1])
    )
    layout = layout_of(model)
    one, other = (
        collect(model, layout, {"one": batches}, 12)["one"].as_statistics("one", {})
        for batches in ((whole,), parts)
    )
    torch.testing.assert_close(
        torch.tensor(one["elimination_error"]), torch.tensor(other["elimination_error"]), rtol=1e-4, atol=1e-8
    )
    assert (one["elimination_rank"] == other["elimination_rank"]).all()
    assert one["elimination_error"].max() > 0


def test_experts_that_do_not_make_up_what_is_added_are_refused():
    class Inside:
        family, name, biases = "toy", "layers.0.experts", ()

        def output_scale(self):
            return 1.0

    def double(inputs, ids, weights):
        return inputs * (ids + 1) * weights

    layer = _Gathered(double, Inside(), ())
    inputs, gates = torch.ones(3, 4), torch.tensor([[0.5, 0.5]]).expand(3, 2)
    layer.values = {"inputs": inputs, "before": inputs, "logits": gates, "gates": gates, "added": 1.5 * inputs}
    assert len(list(_multiply(layer, 2))) == 1
    layer.values["added"] = inputs
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.experts of 'toy' adds something else"):
        list(_multiply(layer, 2))
