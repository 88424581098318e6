"""Other values go into the same layout; bytes that are no other stay; what has no place is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_families import save
from tests.tuning.conftest import make_tokenizer
from transformers import AutoTokenizer

from moe_compress.checkpoint.digest import settings_digest
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.checkpoint.values import plan_values
from moe_compress.errors import CheckpointError


@pytest.fixture
def checkpoint(tmp_path):
    save("qwen3_moe", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / "tokenizer.json").write_text("{}")
    return tmp_path / "checkpoint"


def tensors_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def replaced(checkpoint, tied=None, **values):
    """Write the checkpoint with other values; returns the new folder."""
    folder = checkpoint.parent / "values"
    folder.mkdir()
    save_file(values, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    plan = plan_values(read_index(checkpoint), folder, tied or {}, checkpoint.parent / "staged", "plan")
    write_checkpoint(plan, checkpoint.parent / "out")
    return checkpoint.parent / "out"


def test_without_values_every_byte_stays(checkpoint):
    write_checkpoint(
        plan_values(read_index(checkpoint), None, {}, checkpoint.parent / "s", "plan"),
        out := checkpoint.parent / "out",
    )
    assert {p.name: p.read_bytes() for p in out.glob("*.safetensors")} == {
        p.name: p.read_bytes() for p in checkpoint.glob("*.safetensors")
    }
    assert not (checkpoint.parent / "s").exists()


def test_only_what_is_other_is_taken(checkpoint):
    old = tensors_of(checkpoint)
    name = "model.norm.weight"
    # The head comes back as bfloat16 has it: that is no other value.
    out = replaced(checkpoint, **{name: old[name] + 1, "lm_head.weight": old["lm_head.weight"].bfloat16()})
    new = tensors_of(out)
    assert {key for key in old if not torch.equal(old[key], new[key])} == {name}
    assert torch.equal(new[name], old[name] + 1)
    assert read_index(out).tensors == read_index(checkpoint).tensors
    assert {path.name for path in out.iterdir()} == {path.name for path in checkpoint.iterdir()}


def test_every_chat_template_of_a_tokenizer_stays_and_counts(checkpoint):
    tokenizer, templates = make_tokenizer(), {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(checkpoint)
    out = replaced(checkpoint, **{"model.norm.weight": tensors_of(checkpoint)["model.norm.weight"] + 1})
    assert AutoTokenizer.from_pretrained(out).chat_template == templates
    before = settings_digest(checkpoint)
    assert settings_digest(out) == before
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("{{ other }}")
    assert settings_digest(checkpoint) != before


def test_a_weight_that_stands_twice_is_written_twice(checkpoint):
    value = torch.randn(64, 16)
    new = tensors_of(
        replaced(
            checkpoint, {"lm_head.weight": "model.embed_tokens.weight"}, **{"model.embed_tokens.weight": value}
        )
    )
    assert torch.equal(new["lm_head.weight"], value) and torch.equal(new["model.embed_tokens.weight"], value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"other": torch.ones(2)}, "the new weights have 'other', for which"),
        ({"model.norm.weight": torch.ones(3)}, r"has shape \[3\] and the old one \[16\]"),
        ({"model.norm.weight": torch.full((16,), float("nan"))}, "'model.norm.weight' is not finite"),
    ],
)
def test_values_that_cannot_be_are_refused(checkpoint, values, message):
    with pytest.raises(CheckpointError, match=message):
        replaced(checkpoint, **values)
    assert not (checkpoint.parent / "out").exists()
