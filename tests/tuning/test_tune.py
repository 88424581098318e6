"""A tuned checkpoint is the pruned one with other values, the same to the bit, whether it was killed or not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tuning.conftest import make_settings, publish, read_pruned, run
from transformers import AutoModelForCausalLM

from moe_compress import load_model
from moe_compress.checkpoint.index import read_index
from moe_compress.checkpoint.rewrite import plan_rewrite
from moe_compress.checkpoint.stream import write_checkpoint
from moe_compress.errors import EvaluationError, ParameterError, UnsupportedModelError
from moe_compress.families.derive import derive_tensor_map
from moe_compress.tuning.train import find_last
from moe_compress.tuning.tune import refuse
from moe_compress.types import CompressionPlan, pruning_groups

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::UserWarning"),  # torch's and accelerate's, of a machine without GPU
]


def tensors_of(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("changes", [{}, {"kind": "lora"}, {"objective": "distill"}, {"dtype": "bfloat16"}])
def test_the_layout_stays_and_the_loss_falls(checkpoint, tmp_path, changes):
    folder = checkpoint()
    tuned = run(folder, tmp_path / "work", make_settings(**changes))
    course = tuned.record.course
    assert course.best_step > 0 and course.loss_after < course.loss_before
    files = publish(folder, tuned, tmp_path / "out")
    assert files.keys() == {path.name for path in folder.iterdir()}
    assert read_index(tmp_path / "out").tensors == read_index(folder).tensors
    assert read_index(tmp_path / "out").config == read_index(folder).config
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()) and torch.isfinite(model(torch.tensor([[5, 6]])).logits).all()


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v3", "gpt_oss"])
def test_families_keep_their_layout_too(checkpoint, tmp_path, family):
    folder = checkpoint(family)
    tuned = run(folder, tmp_path / "work", make_settings())
    assert tuned.folder is not None
    publish(folder, tuned, tmp_path / "out")
    assert read_index(tmp_path / "out").tensors == read_index(folder).tensors


def test_only_the_part_asked_for_is_other(checkpoint, tmp_path):
    folder = checkpoint()
    publish(folder, run(folder, tmp_path / "work", make_settings(parameters="routers")), tmp_path / "out")
    before, after = tensors_of(folder), tensors_of(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = read_pruned(folder).layout.layers
    assert changed == {f"model.layers.{layer}.mlp.gate.weight" for layer in layers}


def test_layers_of_different_size_stay_so(checkpoint, tmp_path):
    index = read_index(checkpoint())
    pruned = read_pruned(checkpoint())
    plan = CompressionPlan(pruned.layout, (pruning_groups(range(8)), pruning_groups(range(6))), "test")
    write_checkpoint(
        plan_rewrite(index, derive_tensor_map(index.config, index.shapes), plan, layout="per_layer"),
        tmp_path / "uneven",
    )
    tuned = run(tmp_path / "uneven", tmp_path / "work", make_settings(kind="lora"))
    publish(tmp_path / "uneven", tuned, tmp_path / "out")
    assert read_index(tmp_path / "out").tensors == read_index(tmp_path / "uneven").tensors
    model, info = load_model(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    counts = [getattr(getattr(layer.mlp, "experts", None), "num_experts", 0) for layer in model.model.layers]
    assert [count for count in counts if count] == [8, 6]


def test_killed_and_gone_on_with_is_the_same_to_the_bit(checkpoint, tmp_path):
    folder, settings = checkpoint(), make_settings(kind="lora", steps=12)
    whole = publish(folder, run(folder, tmp_path / "whole", settings), tmp_path / "out-whole")
    command = [sys.executable, "-m", "tests.tuning.interrupted", str(folder), str(tmp_path / "work"), "4"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert find_last(tmp_path / "work") is not None and not (tmp_path / "work" / "saved").exists()
    assert publish(folder, run(folder, tmp_path / "work", settings), tmp_path / "out") == whole


def test_twice_is_the_same_to_the_bit_and_another_seed_is_not(checkpoint, tmp_path):
    folder = checkpoint()
    first, second, other = (
        publish(folder, run(folder, tmp_path / f"work{i}", make_settings(seed=seed, steps=2)), tmp_path / f"out{i}")
        for i, seed in enumerate((1, 1, 2))
    )
    assert first == second != other


def test_what_was_over_is_not_gone_on_with(checkpoint, tmp_path):
    """Stopped early, and killed before anything was saved: the same weights, and no further step."""
    folder, settings = checkpoint(), make_settings(steps=12, learning_rate=0.1, patience=2)
    first = run(folder, tmp_path / "work", settings)
    assert first.record.course.steps[-1].step < 12
    expected = publish(folder, first, tmp_path / "out")
    again = run(folder, tmp_path / "work", settings)
    assert again.record == first.record
    assert publish(folder, again, tmp_path / "again") == expected


def test_a_checkpoint_cut_by_a_kill_is_passed_over(tmp_path):
    for step, text in ((2, '{"global_step": 2}'), (4, '{"global_st')):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(text)
    (tmp_path / "checkpoint-10").mkdir()
    assert find_last(tmp_path) == tmp_path / "checkpoint-2"


def test_what_never_gets_better_stays_as_it_is(checkpoint, tmp_path):
    folder = checkpoint()
    tuned = run(folder, tmp_path / "work", make_settings(learning_rate=30.0, warmup_steps=0))
    assert tuned.folder is None and tuned.record.course.best_step == 0
    assert tuned.record.course.loss_after == tuned.record.course.loss_before
    assert (
        publish(folder, tuned, tmp_path / "out").items()
        >= {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}.items()
    )


def test_a_loss_that_is_no_number_ends_it(checkpoint, tmp_path):
    with pytest.raises(EvaluationError, match="the validation loss is nan while tuning"):
        run(checkpoint(), tmp_path / "work", make_settings(learning_rate=1e38, warmup_steps=0))


def test_quantised_weights_are_refused_by_name():
    with pytest.raises(UnsupportedModelError, match=r"are quantised \(fp8\).*set rewrite.weights to bfloat16"):
        refuse({"model_type": "qwen3_moe", "quantization_config": {"quant_method": "fp8"}})


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParameterError, match="one process, and 2 were started"):
        refuse({"model_type": "qwen3_moe"})
