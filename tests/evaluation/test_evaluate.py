"""One call measures everything, and every part is what its own module measures."""

import math

import pytest
from safetensors.torch import load_file, save_file

from moe_compress.errors import EvaluationError
from moe_compress.evaluation.evaluate import evaluate_checkpoint
from moe_compress.evaluation.harness import score_tasks
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.tasks import load_task
from moe_compress.evaluation.throughput import measure_size

HELDOUT = {"medical": ["Which gland makes insulin?"], "math": ["2 + 2 * 3 = 8"]}


def test_a_checkpoint_is_measured_as_its_parts_are(folder, benchmark_file, model, tokenizer):
    task = load_task("quiz", benchmark_file)
    found = evaluate_checkpoint(folder, [task], HELDOUT, model="baseline", provenance={"base_id": "tiny"})
    assert found.model == "baseline"
    for item, expected in zip(found.items, score_tasks(model, tokenizer, [task]), strict=True):
        assert (item.task, item.item) == (expected.task, expected.item)
        assert item.log_likelihoods == pytest.approx(expected.log_likelihoods, abs=1e-4)
    assert found.perplexities == pytest.approx(measure_perplexities(model, tokenizer, HELDOUT), rel=1e-5)
    assert (found.num_parameters, found.num_bytes) == measure_size(folder)
    assert math.isnan(found.tokens_per_second)  # timed later, beside the other model
    assert found.provenance["base_id"] == "tiny"
    assert found.provenance["task_digest.quiz"] == task.digest
    assert (found.provenance["missing_keys"], found.provenance["unexpected_keys"]) == ("0", "0")
    assert found.provenance["loaded_by"] == "AutoModelForCausalLM"


def test_damaged_weights_are_no_result(folder, benchmark_file):
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match=r"holds NaN or infinity in lm_head\.weight"):
        evaluate_checkpoint(folder, [load_task("quiz", benchmark_file)], HELDOUT)
