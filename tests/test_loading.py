"""Whatever can be compressed can be loaded: by the auto class that knows it, or by its class's name."""

import json

import pytest
import torch
import transformers
from tests import tiny_families
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import moe_compress
from moe_compress.checkpoint.index import read_index
from moe_compress.errors import CheckpointError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.loading import load_tokenizer, name_loader


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
    stock = getattr(transformers, name_loader(tmp_path / "model"))
    assert type(stock.from_pretrained(tmp_path / "model")) is type(model)


def test_a_model_type_of_its_own_is_loaded_by_its_class(tmp_path):
    model = tiny_families.save("deepseek_v3", tmp_path / "model")
    change_config(tmp_path / "model", model_type="kimi_k2")
    check_loaded(tmp_path / "model", model)
    assert name_loader(tmp_path / "model") == "moe_compress.load_model"


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


@pytest.mark.parametrize("model_type", [["mixtral"], None, 7])
def test_a_model_type_that_is_no_text_is_refused(tmp_path, model_type):
    tiny_families.save("mixtral", tmp_path / "model")
    change_config(tmp_path / "model", model_type=model_type)
    index = read_index(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match=r"model_type .*, which is no text; correct it"):
        derive_tensor_map(index.config, index.shapes)
    with pytest.raises(UnsupportedModelError, match=r"model_type .*, which is no text; correct it"):
        moe_compress.load_model(tmp_path / "model")


@pytest.fixture
def kimi(tmp_path, monkeypatch):
    """A checkpoint whose config and tokenizer name code beside them, and a user who says yes to anything."""
    monkeypatch.setattr("builtins.input", lambda *_: "yes")
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    (tmp_path / "tokenization_kimi.py").write_text(code)
    config = {"model_type": "kimi_k2", "auto_map": {"AutoConfig": "tokenization_kimi.KimiConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = {
        "tokenizer_class": "TikTokenTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(own))
    return tmp_path


def test_a_tokenizer_that_only_its_own_code_builds_is_refused(kimi):
    with pytest.raises(CheckpointError, match=r"built by code .* never run; convert it to a tokenizer\.json"):
        load_tokenizer(kimi)
    assert not (kimi / "ran").exists()


def test_a_converted_tokenizer_is_loaded_and_code_beside_it_does_not_run(kimi):
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(kimi)
    assert load_tokenizer(kimi)("a b")["input_ids"] == [0, 1]
    assert not (kimi / "ran").exists()


def test_a_damaged_tokenizer_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"does not load the tokenizer of .* check tokenizer\.json"):
        load_tokenizer(tmp_path)
