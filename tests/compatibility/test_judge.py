"""The facts are whole and sourced, and what follows from them is what each rule says."""

from __future__ import annotations

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from moe_compress.compatibility.judge import CONDITIONS, as_lines, judge, read_facts
from moe_compress.types import MoELayout, Served

HUB_NAMES = {"PhiMoEForCausalLM", "ExaoneMoEForCausalLM", "DeepseekV32ForCausalLM", "MiMoV2FlashForCausalLM"}
"""Classes as `config.json` on the hub spells them, which transformers spells in another way."""


def served(
    *num_experts, architecture="Qwen3MoeForCausalLM", family="qwen3_moe", quantisation=None, dtype="BF16", **layout
):
    counts = num_experts or (64, 64)
    made = MoELayout(tuple(range(len(counts))), counts, **({"top_k": 4} | layout))
    return Served(architecture, family, made, quantisation, dtype)


def verdicts(given):
    return {each.engine: each.verdict for each in judge(given)}


def reasons(given, engine):
    (found,) = (each for each in judge(given) if each.engine == engine)
    return [(reason.effect, reason.text) for reason in found.reasons]


def test_every_rule_is_whole():
    facts = read_facts()
    assert [entry["name"] for entry in facts.values()] == ["transformers", "vLLM", "SGLang", "llama.cpp"]
    used = set()
    for entry in facts.values():
        for rule in entry["rules"]:
            assert set(rule) == {"when", "effect", "says", "source"}
            assert rule["effect"] in ("slower", "condition", "misreads", "refuses")
            assert rule["when"] and rule["says"] and rule["source"]
            used |= set(rule["when"])
    assert used == set(CONDITIONS)  # none unknown, none without a use


def test_only_transformers_was_run():
    assert [entry["was_run"] for entry in read_facts().values()] == [True, False, False, False]


def test_architectures_are_classes_people_have():
    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values(), *HUB_NAMES}
    known |= {name for names in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values() for name in [names]}
    for entry in read_facts().values():
        for name in entry.get("architectures", {}).get("names", []):
            assert name in known or name.startswith("Qwen3Omni"), name


def test_a_power_of_two_that_every_size_divides_loads_everywhere():
    assert set(verdicts(served(64, 64)).values()) == {"loads"}
    assert all(not each.reasons for each in judge(served(64, 64)))


def test_layers_that_differ_load_nowhere_but_with_our_loader():
    found = verdicts(served(32, 48))
    assert set(found.values()) == {"no"}
    assert any("moe_compress.load_model" in text for _, text in reasons(served(32, 48), "transformers"))
    assert all(each.is_warning for each in judge(served(32, 48)))


def test_odd_counts_and_parallel_sizes():
    given = served(50, 50)
    assert verdicts(given) == {
        "transformers": "loads",
        "vLLM": "loads with conditions",
        "SGLang": "loads with conditions",
        "llama.cpp": "loads",
    }
    assert (
        "condition",
        "expert parallelism wants an equal share for every rank, so not over 4, 8 or 16",
    ) in reasons(given, "SGLang")
    assert [effect for effect, _ in reasons(given, "llama.cpp")] == ["slower"]
    assert "not over 2, 4, 8 or 16" in dict(reasons(served(51, 51), "SGLang"))["condition"]


def test_more_devices_than_experts_are_nobodys_question():
    assert set(verdicts(served(8, 8)).values()) == {"loads"}
    assert dict(reasons(served(12, 12), "SGLang"))["condition"].endswith("not over 8")


def test_counts_kernels_are_not_made_for_are_only_slower():
    given = served(48, 48)
    assert set(verdicts(given).values()) == {"loads"}
    for engine in ("vLLM", "SGLang", "llama.cpp"):
        (slower,) = reasons(given, engine)
        assert slower[0] == "slower" and "48 experts" in slower[1]
    assert not reasons(served(192, 192), "vLLM")  # a multiple of 64 its kernel knows
    assert reasons(served(192, 192), "SGLang")


def test_groups():
    grouped = {"num_groups": 8, "topk_groups": 4, "architecture": "DeepseekV3ForCausalLM", "family": "deepseek_v3"}
    assert verdicts(served(128, 128, **grouped)) == {
        "transformers": "loads",
        "vLLM": "loads",
        "SGLang": "loads",
        "llama.cpp": "loads with conditions",
    }
    assert "wants a power of two" in dict(reasons(served(192, 192, **grouped), "SGLang"))["slower"]
    assert "at most 32 experts a group" in dict(reasons(served(512, 512, **grouped), "SGLang"))["slower"]
    many = served(512, 512, **grouped | {"num_groups": 64})
    assert "at most 32 groups" in dict(reasons(many, "vLLM"))["condition"]
    picky = served(512, 512, **grouped, top_k=33)
    assert "picks at most 32" in dict(reasons(picky, "vLLM"))["condition"]


def test_an_engine_that_ranks_groups_in_another_way_misreads():
    given = served(64, num_groups=8, topk_groups=3, architecture="DeepseekV2ForCausalLM", family="deepseek_v2")
    assert verdicts(given)["llama.cpp"] == "misreads"
    assert next(each for each in judge(given) if each.engine == "llama.cpp").is_warning
    flat = served(64, architecture="DeepseekV2ForCausalLM", family="deepseek_v2")
    assert verdicts(flat)["llama.cpp"] == "loads"


def test_an_architecture_nobody_listed_is_not_known():
    given = served(64, architecture="KrakenForCausalLM")
    found = verdicts(given)
    assert found == {"transformers": "loads", "vLLM": "not known", "SGLang": "not known", "llama.cpp": "not known"}
    assert "KrakenForCausalLM is not in the list that was read" in reasons(given, "SGLang")[0][1]
    assert set(verdicts(served(32, 48, architecture="")).values()) == {"no"}  # what is refused anyway stays refused
    wrong = served(64, num_groups=8, topk_groups=3, architecture="KrakenForCausalLM", family="deepseek_v2")
    assert verdicts(wrong)["llama.cpp"] == "misreads"


@pytest.mark.parametrize(
    ("given", "engine", "words"),
    [
        (served(64, quantisation="fp8"), "transformers", "not a multiple of its blocks"),
        (served(64, dtype="F32"), "vLLM", "--dtype float32"),
        (served(64, dtype="F32"), "SGLang", "--dtype float32"),
        (served(4), "vLLM", "over more than 4 GPUs"),
        (served(896), "llama.cpp", "stop at more than 512 experts"),
    ],
)
def test_conditions(given, engine, words):
    assert any(effect == "condition" and words in text for effect, text in reasons(given, engine))
    assert verdicts(given)[engine] == "loads with conditions"


def test_the_table_has_a_line_for_each_engine_and_reason():
    lines = as_lines(judge(served(48)))
    assert lines[0] == "transformers  loads"
    assert lines[1] == "vLLM          loads (not run)"
    assert lines[2].startswith("              - slower: softmax routing of 48 experts")
    assert len(lines) == 7


def test_families_named_in_rules_exist():
    known = {*CONFIG_MAPPING, "kimi_k2"}  # the latter's class is stock, its model type is not
    for entry in read_facts().values():
        for rule in entry["rules"]:
            assert all(family in known for family in rule["when"].get("model_types", []))
