"""The MLmodel file: written once, replaced whole, and the loader behind it."""

import os

import pandas as pd
import pytest
import yaml

from moe_compress.errors import RegistryError
from moe_compress.registry.loader import _load_pyfunc, _prompts
from moe_compress.registry.mlmodel import write_mlmodel


def test_a_second_writing_changes_nothing_and_new_lineage_replaces_the_file(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    path = write_mlmodel(tmp_path, {"run_key": "a1"})
    before = path.read_bytes()
    assert write_mlmodel(tmp_path, {"run_key": "a1"}).read_bytes() == before
    write_mlmodel(tmp_path, {"run_key": "b2"})
    content = yaml.safe_load(path.read_text())
    assert content["metadata"]["run_key"] == "b2"
    assert content["flavors"]["python_function"]["loader_module"] == "moe_compress.registry.loader"
    assert sorted(os.listdir(tmp_path)) == ["MLmodel", "config.json"]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(RegistryError, match=r"has no config\.json"):
        write_mlmodel(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writing_leaves_the_old_file(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    before = write_mlmodel(tmp_path).read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_mlmodel(tmp_path, {"run_key": "b2"})
    assert (tmp_path / "MLmodel").read_bytes() == before


def test_loading_reads_no_weight_until_asked(checkpoint, tmp_path):
    generator = _load_pyfunc(str(tmp_path / "not there"))
    with pytest.raises(OSError):
        _ = generator.model
    model = _load_pyfunc(str(checkpoint)).model
    assert model.config.num_experts == 4


def test_generation_is_greedy_and_continues_the_prompt(checkpoint):
    generator = _load_pyfunc(str(checkpoint))
    prompt = "Question : Which chapter ?"
    once = generator.predict([prompt], {"max_new_tokens": 4})
    assert once == generator.predict(prompt, {"max_new_tokens": 4})
    ids = generator.tokenizer(prompt, return_tensors="pt")["input_ids"]
    words = []
    for _ in range(4):  # the slow reading: the likeliest next word, one at a time
        ids = ids if not words else ids.new_tensor([[*ids[0].tolist(), words[-1]]])
        words.append(int(generator.model(input_ids=ids).logits[0, -1].argmax()))
        if words[-1] == generator.tokenizer.eos_token_id:
            break
    assert once == [generator.tokenizer.decode(words, skip_special_tokens=True)]


@pytest.mark.parametrize(
    "asked",
    ["a", ["a"], pd.Series(["a"]), pd.DataFrame({"prompt": ["a"]}), pd.DataFrame({"p": ["a"], "other": ["b"]})],
)
def test_prompts_come_as_text_list_or_table(asked):
    assert _prompts(asked) == ["a"]
