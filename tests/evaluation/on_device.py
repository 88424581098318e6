"""Measure tiny models on a device that only pretends to be one, and print what differs from the host."""

from __future__ import annotations

import json

from tests.evaluation.conftest import QUESTIONS, build_model, train_tokenizer
from tests.pretended_device import send

from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.fast_choice import ChoiceScorer
from moe_compress.evaluation.finite import check_weights
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.probing import router_rows
from moe_compress.evaluation.routing import observe_routing
from moe_compress.evaluation.tasks import BenchmarkItem, BenchmarkTask

FAMILIES = ("qwen3_moe", "deepseek_v3")
KEPT = ((0, 1, 2, 5), (3, 4, 6, 7))


def measure(model, candidate, tokenizer):
    """Return what each measurement says of a model, and of a candidate beside it."""
    items = (BenchmarkItem(str(n), question, tuple(c), answer) for n, (question, c, answer) in enumerate(QUESTIONS))
    texts = [question for question, _, _ in QUESTIONS]
    check_weights(model, "the model")
    found = {
        "divergence": BasePredictions(model, tokenizer, {"any": texts}).compare(candidate),
        "router rows": router_rows(model),
    }
    with mask_experts(model, KEPT):
        found["choices"] = ChoiceScorer(model, tokenizer, [BenchmarkTask("any", tuple(items))]).score()
        found["perplexities"] = measure_perplexities(model, tokenizer, {"any": texts})
        found["routing"] = observe_routing(model, tokenizer, texts)
    return {name: str(value) for name, value in found.items()}


def main():
    """Print one line of JSON for each family."""
    tokenizer = train_tokenizer()
    for family in FAMILIES:
        both = [build_model(tokenizer, family, seed=seed) for seed in (0, 1)]
        for each in both:
            each.set_attn_implementation("eager")  # any other has a kernel of its own on the host
        expected = measure(*both, tokenizer)
        found = measure(*map(send, both), tokenizer)
        different = [name for name, value in expected.items() if found[name] != value]
        print(json.dumps({"family": family, "different": different}), flush=True)


if __name__ == "__main__":
    main()
