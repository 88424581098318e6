"""A pruned model is served by vLLM and answers as transformers does; only where vLLM and a GPU are there."""

import math
from importlib.util import find_spec

import pytest
import torch
from tests.evaluation.public_rows import gsm8k, in_memory

from moe_compress.errors import CheckpointError
from moe_compress.evaluation.benchmarks import Benchmark, BenchmarkRequest
from moe_compress.evaluation.evaluate import evaluate_checkpoint
from moe_compress.evaluation.language_models import open_vllm
from moe_compress.evaluation.tasks import load_task

pytestmark = [
    pytest.mark.skipif(find_spec("vllm") is None, reason="pip install moe-compress[vllm]"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="vLLM serves on a GPU"),
    pytest.mark.filterwarnings("ignore", "error:::moe_compress"),
]
SUMS = in_memory(Benchmark(harness=("gsm8k",), metric="exact_match", filter="flexible-extract"), gsm8k())


@pytest.fixture
def pruned(tmp_path, make_model, tokenizer):
    """A checkpoint with fewer experts than its family's default, in a shape that GPU kernels take."""
    shape = {"hidden_size": 128, "moe_intermediate_size": 128, "head_dim": 64, "mlp_only_layers": []}
    make_model(num_experts=6, max_position_embeddings=512, **shape).save_pretrained(tmp_path / "pruned")
    tokenizer.save_pretrained(tmp_path / "pruned")
    return tmp_path / "pruned"


def test_a_pruned_model_serves_and_agrees_with_transformers(pruned, benchmark_file):
    task = load_task("quiz", benchmark_file)
    public = BenchmarkRequest({"sums": SUMS})
    served, expected = (
        evaluate_checkpoint(pruned, [task], {}, backend=backend, dtype="float32", public=public)
        for backend in ("vllm", "hf")
    )
    assert [(item.task, item.item) for item in served.items] == [(item.task, item.item) for item in expected.items]
    for one, other in zip(served.items, expected.items, strict=True):
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=0.05)
    assert served.provenance["task_digest.sums"] == expected.provenance["task_digest.sums"]
    assert served.provenance["vllm_version"] and math.isnan(served.tokens_per_second)


def test_a_folder_that_is_no_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="vLLM does not load"):
        open_vllm(tmp_path, "float32", 0)
