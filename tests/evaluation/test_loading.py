"""Loading tells which keys did not fit, and says why a folder does not load."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_compress.errors import CheckpointError, ParameterError
from moe_compress.evaluation.loading import load_stock, quiet


def test_a_whole_checkpoint_has_no_key_that_does_not_fit(folder, model):
    loaded, tokenizer, missing, unexpected = load_stock(folder, "cpu")
    assert (missing, unexpected) == ((), ())
    assert not loaded.training
    assert tokenizer("insulin")["input_ids"]
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_keys_that_do_not_fit_are_told(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stock = load_stock(folder, "cpu")
    assert stock.missing == ("model.norm.weight",)
    assert stock.unexpected == ("model.norm.bias",)


@pytest.mark.parametrize(("count", "unexpected"), [(1, ()), (0, ("model.layers.3.eh_proj.weight",))])
def test_layers_for_multi_token_prediction_fit(folder, count, unexpected):
    """Stock classes pass over such a layer at the depths of published models alone; this model has three layers."""
    tensors = load_file(folder / "model.safetensors") | {"model.layers.3.eh_proj.weight": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": count}))
    assert load_stock(folder, "cpu").unexpected == unexpected


def test_the_dtype_is_a_parameter(folder):
    assert load_stock(folder, "cpu", "bfloat16").model.dtype == torch.bfloat16
    assert load_stock(folder, "cpu", "auto").model.dtype == torch.float32
    with pytest.raises(ParameterError, match=r"no dtype 'int3' .*choose one of auto"):
        load_stock(folder, "cpu", "int3")


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        load_stock(tmp_path)


def test_weights_of_another_shape_are_refused(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.zeros(5)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="transformers does not load"):
        load_stock(folder, "cpu")


def test_a_damaged_file_is_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="transformers does not load"):
        load_stock(folder, "cpu")


def test_loggers_get_their_level_back():
    logger = logging.getLogger("some.package")
    logger.setLevel(logging.INFO)
    with quiet("some.package"):
        assert not logger.isEnabledFor(logging.WARNING)
    assert logger.level == logging.INFO
