"""A tiny random model of every text family with routed experts: 8 experts, top-2, 3 layers, ids below 64."""

import torch
from tests.tiny_configs import CAUSAL, FAMILIES, NUM_EXPERTS
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

from moe_compress.collection.resident import settle_weights

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_RANDOM = ("bias", "biases", "sinks", "_scale")  # these start at zero or one, which would hide a wrong row


def make_config(family, num_experts=NUM_EXPERTS, **changes):
    """Return a family's tiny config; changes go to the part that describes the text model."""
    fields = _with_count(FAMILIES[family], num_experts)
    if "text_config" in fields:
        fields = fields | {"text_config": fields["text_config"] | changes}
        changes = {}
    return CONFIG_MAPPING[family](**(fields | changes))


def _with_count(fields, num_experts):
    counted = {key: num_experts for key in _COUNTS if fields.get(key) == NUM_EXPERTS}
    nested = {key: _with_count(part, num_experts) for key, part in fields.items() if isinstance(part, dict)}
    return fields | nested | counted


def auto_class(family):
    """Return the class that builds and loads the family's text model."""
    return AutoModelForCausalLM if family in CAUSAL else AutoModelForImageTextToText


def build(family, num_experts=NUM_EXPERTS, experts_implementation="eager", **changes):
    """Return a family's tiny model, always the same one, in float32 and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = auto_class(family).from_config(
            make_config(family, num_experts, **changes),
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation=experts_implementation,
        )
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if name.endswith(_RANDOM):
                    tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def save(family, folder, **changes):
    """Write a family's tiny model as transformers saves it, in several files, and return the model."""
    model = build(family, **changes)
    model.save_pretrained(folder, max_shard_size="30KB")
    return model


def load(family, folder):
    """Return the model a folder holds, after checking that transformers had nothing to complain about."""
    model, info = auto_class(family).from_pretrained(
        folder,
        output_loading_info=True,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return settle_weights(model.eval())
