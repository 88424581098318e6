"""Models built from a `config.json` alone."""

from moe_compress.families.building import build_config


def test_a_word_is_a_model_type_before_it_is_a_class():
    assert build_config({"model_type": "mixtral", "architectures": ["LlamaForCausalLM"]}).model_type == "mixtral"
    assert build_config({"model_type": "x", "architectures": ["LlamaForCausalLM"]}).model_type == "llama"
