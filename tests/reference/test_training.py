"""Training: repeatable to the bit, resumable to the same bits, and its experts are the stock ones."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from moe_compress.errors import DataError
from moe_compress.reference import experts, export, train
from moe_compress.reference.export import load_checkpoint


def weights(config, folder):
    return load_checkpoint(config, folder)[0].state_dict()


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_training_twice_gives_the_same_bits_and_another_seed_does_not(tmp_path, tiny_config, sequences, settings):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train.train(tiny_config, sequences, dataclasses.replace(settings, seed=seed), tmp_path / name, resume=False)
    first, again, other = (weights(tiny_config, tmp_path / name) for name in "abc")
    assert same(first, again)
    assert not same(first, other)


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, tiny_config, sequences, settings, monkeypatch):
    train.train(tiny_config, sequences, settings, tmp_path / "whole", resume=False)
    advance = train._Run.advance

    def stop_at_four(run, step, rank, workers):
        if step == 4:
            raise KeyboardInterrupt
        return advance(run, step, rank, workers)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(train._Run, "advance", stop_at_four)
        train.train(tiny_config, sequences, settings, tmp_path / "stopped", resume=True)
    assert len(load_checkpoint(tiny_config, tmp_path / "stopped")[1]) == 4
    train.train(tiny_config, sequences, settings, tmp_path / "stopped", resume=True)
    assert same(weights(tiny_config, tmp_path / "whole"), weights(tiny_config, tmp_path / "stopped"))


def test_a_checkpoint_of_other_settings_is_refused(tmp_path, tiny_config, sequences, settings):
    train.train(tiny_config, sequences, settings, tmp_path, resume=False)
    other = dataclasses.replace(settings, learning_rate=1e-3)
    with pytest.raises(DataError, match=r"checkpoint\.pt comes from other settings"):
        train.train(tiny_config, sequences, other, tmp_path, resume=True)


def test_two_workers_do_the_work_of_one(tmp_path, tiny_config, sequences, settings):
    whole = dataclasses.replace(sequences, tokens=np.maximum(sequences.tokens, 2))
    few = dataclasses.replace(settings, steps=2, balance=0.0)
    train.train(tiny_config, whole, few, tmp_path / "one", resume=False)
    train.train(tiny_config, whole, dataclasses.replace(few, workers=2), tmp_path / "two", resume=False)
    one, two = (load_checkpoint(tiny_config, tmp_path / name)[1] for name in ("one", "two"))
    assert one == pytest.approx(two, rel=2e-3)


def test_no_checkpoint_says_what_to_do(tmp_path, tiny_config):
    with pytest.raises(DataError, match="train first"):
        load_checkpoint(tiny_config, tmp_path)


def test_sorted_slices_equals_the_stock_experts_and_their_gradients(tiny_config):
    model = train.build_model(tiny_config, seed=1)
    tokens = torch.randint(2, 64, (3, 20), generator=torch.Generator().manual_seed(0))
    found = {}
    for name in (experts.IMPLEMENTATION, "eager"):
        model.set_experts_implementation(name)
        model.zero_grad()
        loss = train.language_loss(model, tokens, padding=1).mean()
        loss.backward()
        found[name] = [loss.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
    for ours, stock in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours, stock, atol=1e-5, rtol=1e-5)


def test_an_expert_without_tokens_gets_no_gradient(tiny_config):
    model = train.build_model(tiny_config, seed=1)
    module = model.model.layers[0].mlp.experts
    hidden = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[0, 3]] * 5)
    experts.sorted_slices(module, hidden, ids, torch.full((5, 2), 0.5)).sum().backward()
    used = [bool(gradient.abs().sum() > 0) for gradient in module.down_proj.grad]
    assert used == [True, False, False, True, False, False]


def test_learning_rate_warms_up_and_comes_down(settings):
    rates = [train.learning_rate(settings, step) for step in range(settings.steps)]
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] < 0.2 * settings.learning_rate


def test_balance_is_one_for_even_routing_and_more_for_uneven():
    logits, even = torch.zeros(8, 4), torch.arange(8).reshape(8, 1) % 4
    assert train._unevenness(logits, even) == pytest.approx(1.0)
    # All tokens go to expert 0, whose probability is near one: 4 * (1 * 1).
    assert train._unevenness(torch.tensor([[50.0, 0, 0, 0]] * 8), torch.zeros(8, 1, dtype=int)) == pytest.approx(
        4.0
    )


def test_export_is_a_stock_folder(tmp_path, tiny_config, sequences, settings):
    from transformers import AutoModelForCausalLM

    from moe_compress.reference.tokenizer import train_tokenizer

    train.train(tiny_config, sequences, settings, tmp_path / "work", resume=False)
    model, losses = load_checkpoint(tiny_config, tmp_path / "work")
    assert len(losses) == settings.steps
    tokenizer = train_tokenizer(["ab ba"] * 9, 300, 32)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("gone after export")
    export.export_model(model, tokenizer, "# card\n", tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    stock, report = AutoModelForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert stock.dtype is torch.bfloat16
    assert stock.config.num_experts == 6
