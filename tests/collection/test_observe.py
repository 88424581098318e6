"""Observation at its edges: padding, other implementations, bfloat16, what is wrong or cannot be seen."""

import pytest
import torch
from tests import tiny_families
from tests.tiny_configs import TOP_K, VOCABULARY
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_compress.collection.batches import Batch
from moe_compress.collection.contribution import change_direction, pass_through
from moe_compress.collection.expert_layers import find_layers
from moe_compress.collection.observe import observe
from moe_compress.errors import StatisticsError, UnsupportedModelError


def make_batch():
    tokens = torch.randint(3, VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    return Batch(tokens, mask, torch.tensor([4, 2, 9]))


def run(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch.input_ids_BS, attention_mask=batch.mask_BS, use_cache=False).logits


def watch(model, batch, inspect=None):
    recorded = {}
    with observe(model, recorded.__setitem__, inspect) as set_batch:
        set_batch(batch)
        logits = run(model, batch)
    return logits, [recorded[row] for row in sorted(recorded)]


@pytest.fixture
def model():
    return tiny_families.build("qwen3_moe", experts_implementation="grouped_mm")


@pytest.fixture
def batch():
    return make_batch()


def test_padding_is_left_out_and_each_token_knows_its_demonstration(model, batch):
    full = Batch(batch.input_ids_BS, torch.ones_like(batch.mask_BS), batch.demonstrations_B)
    _, padded = watch(model, batch)
    _, whole = watch(model, full)
    keep_T = batch.mask_BS.reshape(-1).bool()
    for some, every in zip(padded, whole, strict=True):
        torch.testing.assert_close(some.output_norms_TK, every.output_norms_TK[keep_T])
        torch.testing.assert_close(some.router_logits_TE, every.router_logits_TE[keep_T])
        assert some.demonstrations_T.tolist() == [4] * 9 + [2] * 5 + [9] * 9


@pytest.mark.parametrize(
    "family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "flex_olmo", "nemotron_h", "dbrx", "llama4_text"]
)
def test_bfloat16_logits_stay_the_same_bits(family, batch):
    width = "intermediate_size" if family in ("gpt_oss", "flex_olmo") else "moe_intermediate_size"
    # Grouped kernels want rows of whole 16 bytes.
    changes = {} if family in ("dbrx", "llama4_text") else {width: 16}
    model = tiny_families.build(family, experts_implementation=None, **changes).bfloat16()
    plain = run(model, batch)
    logits, recorded = watch(model, batch)
    assert torch.equal(plain, logits)
    assert all(seen.output_norms_TK.dtype == seen.residual_change_T.dtype == torch.float64 for seen in recorded)


def test_an_implementation_registered_by_someone_else_gives_the_same(model, batch):
    _, expected = watch(model, batch)
    calls = []

    def theirs(experts, *inputs):
        calls.append(len(inputs[0]))
        return ALL_EXPERTS_FUNCTIONS["batched_mm"](experts, *inputs)

    ALL_EXPERTS_FUNCTIONS.register("theirs", theirs)
    model.set_experts_implementation("theirs")
    _, recorded = watch(model, batch)
    assert calls == [27, 27 * TOP_K] * len(recorded)
    for seen, stock in zip(recorded, expected, strict=True):
        torch.testing.assert_close(seen.output_norms_TK, stock.output_norms_TK, rtol=1e-5, atol=0)
        torch.testing.assert_close(seen.residual_change_T, stock.residual_change_T, rtol=1e-5, atol=0)


def test_a_forward_that_someone_else_wrapped_is_called_and_put_back(model, batch):
    experts, calls = find_layers(model)[0].experts, []
    stock = experts.forward
    experts.forward = wrapped = lambda *inputs: calls.append(1) or stock(*inputs)
    watch(model, batch)
    assert experts.forward is wrapped and calls == [1]


def test_weights_may_come_after_observation_began(model, batch):
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    plain, recorded = run(model, batch), []
    model.to("meta")
    with observe(model, lambda row, seen: recorded.append(row)) as set_batch:
        set_batch(batch)
        model.to_empty(device="cpu")
        model.load_state_dict(weights)
        model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
        assert torch.equal(run(model, batch), plain)
    assert recorded == [0, 1]


def test_inspect_gets_what_the_experts_read_and_can_run_them(model, batch):
    rows = []

    def inspect(row, forward, hidden_TD, seen, inside):
        rows.append(row)
        assert hidden_TD.shape == (len(seen.expert_ids_TK), model.config.hidden_size)
        first_T1 = seen.expert_ids_TK[:, :1]
        outputs_TD = forward(hidden_TD, first_T1, torch.ones(first_T1.shape))
        torch.testing.assert_close(outputs_TD.double().norm(dim=-1), seen.output_norms_TK[:, 0], rtol=1e-5, atol=0)

    plain = run(model, batch)
    logits, _ = watch(model, batch, inspect)
    assert rows == [0, 1] and torch.equal(plain, logits)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_change_of_direction_is_one_minus_the_cosine(length, dtype):
    generator = torch.Generator().manual_seed(5)
    before_TD = torch.randn(700, 300, generator=generator).to(dtype)
    added_TD = (length * torch.randn(700, 300, generator=generator)).to(dtype)
    before, after = before_TD.double(), before_TD.double() + added_TD.double()
    expected_T = 1 - (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    torch.testing.assert_close(change_direction(before_TD, added_TD), expected_T, rtol=1e-6, atol=1e-15)


def test_change_of_direction_when_turned_round_or_from_nothing():
    before_TD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [3.0, 4.0]])
    added_TD = torch.tensor([[-3.0, 0.0], [-1.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    # turned round: cos -1; to a right angle: cos 0; no direction before: 1 by definition; unchanged: cos 1
    torch.testing.assert_close(change_direction(before_TD, added_TD).tolist(), [2.0, 1.0, 1.0, 0.0])


def test_the_shares_of_routed_and_shared_experts_add_up_behind_a_norm():
    torch.manual_seed(0)
    norm = nn.RMSNorm(8)
    norm.weight.data.normal_()
    routed, shared = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    total = routed + shared
    left = norm(total).detach()
    shares = [pass_through(part.flatten(0, 1), "norm", norm, total, left, {}) for part in (routed, shared)]
    torch.testing.assert_close(shares[0] + shares[1], left, rtol=1e-5, atol=1e-5)
    rms = (total.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
    torch.testing.assert_close(shares[0], (norm.weight * routed / rms).detach(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("model.layers.2.mlp.gate.weight", r"what the router said to 'model\.layers\.2\.mlp\.experts'"),
        ("model.layers.0.mlp.experts.down_proj", r"output of expert \d of 'model\.layers\.0\.mlp\.experts'"),
        (
            "model.embed_tokens.weight",
            r"what the layers before gave to the decoder layer of 'model\.layers\.0\.mlp\.experts'",
        ),
    ],
)
def test_nan_names_the_layer_and_the_part(model, batch, place, words):
    with torch.no_grad():
        model.get_parameter(place).fill_(torch.nan)
    with pytest.raises(StatisticsError, match=words):
        watch(model, batch)
    assert not any(module._forward_hooks or "forward" in vars(module) for module in model.modules())


def test_a_batch_that_was_not_announced_is_an_error(model, batch):
    with pytest.raises(StatisticsError, match="saw 27 tokens where the batch has 0 places"), observe(model, print):
        run(model, batch)
    with (
        pytest.raises(StatisticsError, match="saw 27 tokens where the batch has 9 places"),
        observe(model, print) as set_batch,
    ):
        set_batch(Batch(batch.input_ids_BS[:1], batch.mask_BS[:1], batch.demonstrations_B[:1]))
        run(model, batch)


def test_a_residual_stream_that_cannot_be_found_is_an_error(model, batch):
    block = find_layers(model)[0].block
    block.register_forward_pre_hook(lambda _, inputs: (inputs[0].clone(),))
    with pytest.raises(UnsupportedModelError, match=r"no norm feeds the MoE block of model\.layers\.0"):
        watch(model, batch)


def test_a_router_that_is_no_module_is_an_error(model, batch):
    block = find_layers(model)[0].block
    router = block._modules.pop("gate")
    vars(block)["gate"] = router
    with pytest.raises(
        UnsupportedModelError, match=r"model\.layers\.0\.mlp\.experts was reached without its router"
    ):
        watch(model, batch)


def test_a_kernel_that_takes_the_blocks_place_is_an_error(model, batch):
    find_layers(model)[0].block.forward = torch.zeros_like
    with pytest.raises(UnsupportedModelError, match=r"runs model\.layers\.0\.mlp\.experts by a kernel"):
        watch(model, batch)
