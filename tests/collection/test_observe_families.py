"""What observation says of every family, against the family's own decoder layer with parts of it switched off."""

from contextlib import contextmanager

import pytest
import torch
from tests import tiny_families
from tests.tiny_configs import FAMILIES, VOCABULARY

from moe_compress.collection.batches import Batch
from moe_compress.collection.expert_layers import find_layers
from moe_compress.collection.observe import observe
from moe_compress.errors import UnsupportedModelError

pytestmark = pytest.mark.filterwarnings("ignore")

REFUSED = {"jetmoe", "zaya", "ernie4_5_vl_moe", "longcat_flash"}
CASES = {family: (family, {}) for family in FAMILIES if family not in REFUSED}
CASES |= {
    "beam scaled": ("beam", {"routed_scaling_factor": 2.5}),
    "cohere2_moe average": ("cohere2_moe", {"shared_expert_combination_strategy": "average"}),
    "cohere2_moe sum": ("cohere2_moe", {"shared_expert_combination_strategy": "sum"}),
    "deepseek_v3 groups": ("deepseek_v3", {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5}),
    "deepseek_v4 hash": ("deepseek_v4", {"mlp_layer_types": ["hash_moe", "moe", "hash_moe"]}),
    "dots3_note_text groups": ("dots3_note_text", {"n_group": 2}),
    "gpt_oss three": ("gpt_oss", {"num_experts_per_tok": 3}),
    "laguna scaled": ("laguna", {"moe_routed_scaling_factor": 2.5}),
    "llama4_text two": ("llama4_text", {"num_experts_per_tok": 2}),
    "minimax weighted": ("minimax", {"mlp_alpha_factor": 0.7, "mlp_beta_factor": 1.9}),
    "minimax_m3_vl_text scaled": ("minimax_m3_vl_text", {"routed_scaling_factor": 2.5}),
    "mixtral five": ("mixtral", {"num_experts_per_tok": 5}),
    "nemotron_h latent": ("nemotron_h", {"moe_latent_size": 12}),
    "step3p7 scaled": ("step3p7", {"moe_router_scaling_factor": 2.5}),
}
UNDECORATED = {"dbrx", "llama4", "llama4_text", "step3p7"}
SHARED_UNDER_ONE_NORM = {
    "afmoe": "mlp.shared_experts",
    "kolibri1": "mlp.shared_experts",
    "axk1": "mlp.shared_experts",
}
SHARED_UNDER_ONE_NORM |= {"gemma4": "mlp", "gemma4_text": "mlp"}
BESIDE_THE_BLOCK = ("shared_mlp", "mlp")


def make_batch():
    tokens = torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
    return Batch(tokens, torch.ones_like(tokens), torch.arange(2))


def build(case, implementation="eager"):
    """Build a case's model; the stock implementation is the default, which every vision tower accepts."""
    named = None if implementation == "grouped_mm" else implementation
    family, changes = CASES[case]
    model = tiny_families.build(family, experts_implementation=named, **changes)
    if family == "qwen3_omni_moe_thinker":  # its forward looks for places of images, and its config has no ids
        model.config.vision_start_token_id = model.config.audio_start_token_id = VOCABULARY
    experts = find_layers(model)[0].experts
    assert getattr(getattr(experts, "config", None), "_experts_implementation", "eager") == implementation
    return model


def run(model, batch):
    with torch.inference_mode():
        return model(input_ids=batch.input_ids_BS, attention_mask=batch.mask_BS, use_cache=False).logits


def watch(model, batch):
    """Return the logits, the recorded batches, and what `inspect` was given."""
    recorded, inspected = [], []
    with observe(
        model,
        lambda row, seen: recorded.append((row, seen)),
        lambda row, forward, hidden, seen, inside: inspected.append((forward, hidden)),
    ) as set_batch:
        set_batch(batch)
        logits = run(model, batch)
    return logits, [seen for _, seen in sorted(recorded, key=lambda item: item[0])], inspected


def state_of(model):
    return [
        (name, sorted(vars(module)), len(module._forward_hooks), len(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ]


@pytest.fixture(params=CASES)
def case(request):
    return request.param


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_observing_changes_no_bit_and_leaves_no_trace(case, implementation):
    if CASES[case][0] in UNDECORATED and implementation != "eager":
        pytest.skip("has one implementation only")
    model, batch = build(case, implementation), make_batch()
    state, plain = state_of(model), run(model, batch)
    logits, recorded, _ = watch(model, batch)
    assert torch.equal(plain, logits)
    assert state_of(model) == state
    assert torch.equal(plain, run(model, batch))
    assert len(recorded) == len(find_layers(model)) > 0


def outputs_slowly(layer, forward, hidden_TD, ids_TK, gates_TK):
    """Return each chosen expert's output `[T, K, D]`, from one call per expert on every token."""
    num_tokens = len(ids_TK)
    num_experts = int(ids_TK.max()) + 1
    if layer.departure.scales_input:
        scores_ET = torch.zeros(layer.experts.num_experts, num_tokens).scatter_(0, ids_TK.T, gates_TK.T)
        outputs_ETD = forward((hidden_TD * scores_ET.unsqueeze(-1)).flatten(0, 1)).view(*scores_ET.shape, -1)
        return outputs_ETD[ids_TK, torch.arange(num_tokens).unsqueeze(1)] / gates_TK.unsqueeze(-1)
    ones_T1 = torch.ones(num_tokens, 1)
    every = [
        forward(hidden_TD, torch.full((num_tokens, 1), expert), ones_T1).reshape(num_tokens, -1)
        for expert in range(num_experts)
    ]
    return torch.stack(every, dim=1)[torch.arange(num_tokens).unsqueeze(1), ids_TK]


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_gate_weights_times_outputs_are_the_blocks_routed_output(case, implementation):
    if CASES[case][0] in UNDECORATED and implementation != "eager":
        pytest.skip("has one implementation only")
    model, batch = build(case, implementation), make_batch()
    layers, routed = find_layers(model), {}
    with torch.inference_mode():
        for layer in layers:
            layer.experts.register_forward_hook(
                lambda _, inputs, output, row=layer.row: routed.update({row: output})
            )
        _, recorded, inspected = watch(model, batch)
        for layer, seen, (forward, hidden_TD) in zip(layers, recorded, inspected, strict=True):
            gates_TK = seen.gate_weights_TK
            hidden_TD = hidden_TD if not layer.departure.scales_input else unscale(model, layer, batch)
            outputs_TKD = outputs_slowly(layer, forward, hidden_TD, seen.expert_ids_TK, gates_TK)
            expected = routed[layer.row].reshape(
                len(gates_TK) * (layer.experts.num_experts if layer.departure.scales_input else 1), -1
            )
            if layer.departure.scales_input:
                expected = expected.view(layer.experts.num_experts, len(gates_TK), -1).sum(0)
            scale = layer.departure.routed_scale(layer.decoder_layer)
            total_TD = (outputs_TKD * gates_TK.unsqueeze(-1)).sum(dim=1)
            torch.testing.assert_close(total_TD, expected * scale, rtol=1e-4, atol=1e-5)
            norms_TK = outputs_TKD.double().norm(dim=-1)
            torch.testing.assert_close(seen.output_norms_TK, norms_TK, rtol=1e-5, atol=1e-7)


def unscale(model, layer, batch):
    """Return what entered an input-scaling block."""
    entered = []
    handle = layer.owner.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    run(model, batch)
    handle.remove()
    return entered[0].flatten(0, -2)


def layer_output(model, layer, batch):
    """Return what a decoder layer gives, `[T, D]`, several streams side by side."""
    seen = []
    handle = layer.decoder_layer.register_forward_hook(lambda _, inputs, output: seen.append(output))
    run(model, batch)
    handle.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    return output.flatten(0, 1).flatten(1).double()


@contextmanager
def without(*modules):
    """Switch modules off: with parameters of zero they give zero."""
    saved = [(parameter, parameter.detach().clone()) for module in modules for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, _ in saved:
            parameter.zero_()
        yield
        for parameter, value in saved:
            parameter.copy_(value)


def test_residual_change_is_what_the_layer_does_without_its_experts(case):
    """`h` is the layer's output without MoE block; what is added is the difference that the routed experts make."""
    model, batch = build(case), make_batch()
    layer = find_layers(model)[0]
    if case in SHARED_UNDER_ONE_NORM:  # their norm is not linear, so the difference needs the routed part alone
        with torch.no_grad():
            for parameter in layer.decoder_layer.get_submodule(SHARED_UNDER_ONE_NORM[case]).parameters():
                parameter.zero_()
    _, recorded, _ = watch(model, batch)
    beside = [child for name, child in layer.decoder_layer.named_children() if name in BESIDE_THE_BLOCK]
    full = layer_output(model, layer, batch)
    with without(layer.experts):
        added = full - layer_output(model, layer, batch)
    with without(layer.experts, layer.block, *beside):
        before = layer_output(model, layer, batch)
    if layer.departure.residual == "layer_input":  # attention runs beside the block and is not part of h
        with without(layer.block, layer.decoder_layer.self_attn):
            before = layer_output(model, layer, batch)
    change = 1 - torch.nn.functional.cosine_similarity(before, before + added, dim=-1)
    assert change.min() > 1e-6
    torch.testing.assert_close(recorded[0].residual_change_T, change, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("refused", sorted(REFUSED))
def test_what_cannot_be_observed_is_refused_by_name(refused):
    model = tiny_families.build(refused)
    with pytest.raises(UnsupportedModelError, match="cannot be observed"), observe(model, print):
        pass
