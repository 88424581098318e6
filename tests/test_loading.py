"""Whatever can be compressed can be loaded: by the auto class that knows it, or by its class's name."""

import json

import pytest
import torch
from tests import tiny_families

import moe_compress
from moe_compress.checkpoint.index import read_index
from moe_compress.errors import UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def check_loaded(folder, model):
    loaded, info = moe_compress.load_model(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("family", ["qwen3_moe", "mistral4", "qwen3_vl_moe", "kimi_k25"])
def test_a_stock_checkpoint_is_loaded_by_the_class_that_knows_it(tmp_path, family):
    model = tiny_families.save(family, tmp_path / "model")
    check_loaded(tmp_path / "model", model)


def test_a_model_type_of_its_own_is_loaded_by_its_class(tmp_path):
    model = tiny_families.save("deepseek_v3", tmp_path / "model")
    change_config(tmp_path / "model", model_type="kimi_k2")
    check_loaded(tmp_path / "model", model)


def test_an_architecture_named_otherwise_on_the_hub_is_that_of_its_model_type(tmp_path):
    model = tiny_families.save("kimi_k25", tmp_path / "model")
    change_config(tmp_path / "model", architectures=["KimiK25ForConditionalGeneration"])
    index = read_index(tmp_path / "model")
    assert derive_tensor_map(index.config, index.shapes).layout.num_experts[0] == 8
    check_loaded(tmp_path / "model", model)


def test_a_model_nobody_knows_is_refused(tmp_path):
    tiny_families.save("mixtral", tmp_path / "model")
    change_config(tmp_path / "model", model_type="new", architectures=["NewForCausalLM"])
    with pytest.raises(UnsupportedModelError, match=r"model_type 'new', which transformers .* does not know"):
        moe_compress.load_model(tmp_path / "model")
