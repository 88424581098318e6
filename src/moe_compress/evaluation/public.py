"""Ask a model public benchmarks through lm-evaluation-harness, keeping every item as it was put and answered."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import jinja2
import numpy as np
from datasets import Dataset
from huggingface_hub.errors import HfHubHTTPError
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from moe_compress.atomic import write_atomically
from moe_compress.errors import DataError, ParameterError
from moe_compress.evaluation.benchmarks import Benchmark, BenchmarkRequest
from moe_compress.evaluation.harness import NOISY, no_bar_per_task
from moe_compress.evaluation.loading import quiet
from moe_compress.evaluation.problems import read_problems
from moe_compress.evaluation.programs import judge_program
from moe_compress.evaluation.sandbox import run_program
from moe_compress.types import ItemResult, as_json, digest_of

Tasks = dict[str, Any]
"""The harness's name -> its task, with data."""

PHRASE = 40
"""Characters from which on a text is a row's own."""

PASSED = "passed"
"""The answer of a program that passes its tests."""

_LENGTHS: Mapping[str, Callable[[str], int]] = {
    "acc": lambda choice: 1,
    "acc_norm": len,
    "acc_bytes": lambda choice: len(choice.encode()),
}
"""The harness's metrics that take one choice as the answer -> what each divides a choice's log-likelihood by."""


def fetch_benchmarks(request: BenchmarkRequest) -> None:
    """Build every benchmark's tasks, which downloads what is not there yet, and try confinement where it is needed.

    Raises:
        ParameterError: if the harness has no task of a name, or choices cannot be judged by the metric.
        DataError: if a data set cannot be had or is not what the definition takes it for.
        EvaluationError: if generated code is to be run and this machine cannot confine it.
    """
    if any(benchmark.runs_code for benchmark in request.benchmarks.values()):
        run_program("pass")
    for name, benchmark in request.benchmarks.items():
        build_tasks(name, benchmark, request.chat_template)


def ask_benchmarks(
    lm: Any, request: BenchmarkRequest, answers: Path | None = None
) -> tuple[tuple[ItemResult, ...], dict[str, str]]:
    """Return the items of all benchmarks as one of the harness's models answers them, and benchmark -> digest.

    The digest is that of everything that was put to the model and of what counts as right.

    Args:
        lm: the model.
        request: what to ask.
        answers: a folder of this model and request alone, where each benchmark is kept once it is answered and from
            where it is taken if it was; None keeps nothing.

    Raises:
        ParameterError: if a definition does not suit the harness, or the tokenizer has no chat template.
        DataError: if a data set cannot be had, or an item does not fit into the model's context.
        EvaluationError: if generated code is to be run and this machine cannot confine it.
    """
    if request.chat_template and request.benchmarks and not getattr(lm.tokenizer, "chat_template", None):
        raise ParameterError(
            "evaluate.chat_template is true, but the model's tokenizer has no chat template; set it to false"
        )
    asked = {name: _ask_once(lm, name, request, answers) for name in request.benchmarks}
    return (
        tuple(chain.from_iterable(items for items, _ in asked.values())),
        {name: digest for name, (_, digest) in asked.items()},
    )


def read_phrases(request: BenchmarkRequest) -> list[str]:
    """Return the long texts in the rows of all benchmarks, also of items that are not asked.

    A row is compared part by part, because the harness frames questions as no other text does; short parts are left
    out, because a choice such as `none of these` stands in many texts.

    Raises:
        DataError: if a data set cannot be had.
    """
    rows = (
        row
        for name, benchmark in request.benchmarks.items()
        for task in build_tasks(name, benchmark, request.chat_template).values()
        for row in task.eval_docs
    )
    return [value for row in rows for value in row.values() if isinstance(value, str) and len(value) >= PHRASE]


def build_tasks(name: str, benchmark: Benchmark, chat_template: bool = False) -> Tasks:
    """Return a benchmark's tasks as the harness builds them, with their data.

    Raises:
        ParameterError: if the harness has no task of a name, or choices cannot be judged by the metric.
        DataError: if a data set cannot be had or is not what the definition takes it for.
    """
    overrides = benchmark.overrides(chat_template)
    if benchmark.problems:
        rows = read_problems(benchmark.problems)
        overrides["custom_dataset"] = lambda **_: {"test": Dataset.from_list(rows)}
    manager = _registry() if benchmark.harness else TaskManager(include_defaults=False)
    for missing in set(benchmark.harness) - set(manager.all_subtasks):
        raise ParameterError(
            f"benchmark '{name}' is the task '{missing}' of lm-evaluation-harness, which has none of that name; "
            f"correct benchmarks.definitions.{name}.harness"
        )
    try:
        with quiet(*NOISY), _plain_data(), _seeded(benchmark.seed):
            tasks: Tasks = manager.load(_specification(name, benchmark.harness, overrides))["tasks"]
            for task in tasks.values():
                _process_once(task, benchmark.seed)
    except _UNAVAILABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"the data of benchmark '{name}' cannot be had ({type(error).__name__}: {reason}); check the "
            "connection to the hub and your login there, or take the benchmark out of its suite"
        ) from error
    for task in tasks.values():
        _check_choices(name, benchmark, task)
    return tasks


def _check_choices(name: str, benchmark: Benchmark, task: Any) -> None:
    """Refuse choices with a metric that is not measured, or that does not say which choice is the answer."""
    known = [metric for metric in _LENGTHS if metric in task.aggregation()]
    if task.OUTPUT_TYPE == "multiple_choice" and benchmark.metric not in known:
        raise ParameterError(
            f"benchmark '{name}' is judged by '{benchmark.metric}', but the choices of '{task.config.task}' can be "
            f"judged by {', '.join(known) or 'no metric of its metric_list'}; correct "
            f"benchmarks.definitions.{name}.metric"
        )


def _process_once(task: Any, seed: int) -> None:
    """Fix a task's items and draws: the harness processes items at every look, and some tasks shuffle then."""
    split = task.config.test_split or task.config.validation_split
    if process := task.config.process_docs:
        with _seeded(seed):
            task.dataset = {**task.dataset, split: process(task.dataset[split])}
        task.config.process_docs = None
    task.set_fewshot_seed(seed)


def _specification(name: str, harness: tuple[str, ...], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the harness's registry is asked for; only members of a group are laid over its own settings."""
    if not harness:
        return {"task": name, **overrides}
    return {"group": name, "task": [{"task": task, **overrides} for task in harness]}


def _ask_once(
    lm: Any, name: str, request: BenchmarkRequest, answers: Path | None
) -> tuple[tuple[ItemResult, ...], str]:
    """Return a benchmark's items and digest, from a file if they are there."""
    file = answers / f"{name}.json" if answers else None
    if file and file.is_file():
        kept = json.loads(file.read_text())
        items = ({**item, "log_likelihoods": tuple(item["log_likelihoods"])} for item in kept["items"])
        return tuple(ItemResult(**item) for item in items), kept["digest"]
    found, digest = _ask(lm, name, request.benchmarks[name], request)
    if file:
        write_atomically(file, json.dumps({"items": as_json(found), "digest": digest}).encode())
    return found, digest


def _ask(lm: Any, name: str, benchmark: Benchmark, request: BenchmarkRequest) -> tuple[tuple[ItemResult, ...], str]:
    tasks = build_tasks(name, benchmark, request.chat_template)
    chosen = choose_items(
        {task: len(built.eval_docs) for task, built in tasks.items()}, request.limit, request.seed
    )
    lm.leaves_out_too_long = benchmark.too_long == "wrong"
    with quiet(*NOISY), no_bar_per_task(), _seeded(benchmark.seed):
        found = evaluate(
            lm,
            {"tasks": {task: tasks[task] for task in chosen}},
            samples=chosen,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=request.chat_template,
            fewshot_as_multiturn=request.chat_template,
        )["samples"]
    samples = [
        (task, sample)
        for task in chosen
        for sample in sorted(found[task], key=lambda sample: int(sample["doc_id"]))
        if sample["filter"] == benchmark.filter
    ]
    if not samples:
        filters = sorted({sample["filter"] for task in chosen for sample in found[task]})
        raise ParameterError(
            f"benchmark '{name}' takes answers from the filter '{benchmark.filter}', but its task has "
            f"{', '.join(filters)}; correct benchmarks.definitions.{name}.filter"
        )
    items = tuple(_result(lm, name, benchmark, task, tasks[task], sample) for task, sample in samples)
    put = [[task, sample["doc_id"], sample["arguments"], sample["target"]] for task, sample in samples]
    return items, digest_of([benchmark.metric, benchmark.filter, benchmark.program, put])


def _result(
    lm: Any, name: str, benchmark: Benchmark, task: str, built: Any, sample: Mapping[str, Any]
) -> ItemResult:
    """Return one of the harness's samples as an item."""
    row = sample["doc"]
    item, question = f"{task}/{sample['doc_id']}", str(built.doc_to_text(row))
    if built.OUTPUT_TYPE == "multiple_choice":
        values = tuple(float(value) for value, _ in sample["filtered_resps"])
        target = sample["target"]
        choices = built.doc_to_choice(row)
        answer = target if isinstance(target, int) else choices.index(target)
        likeliest = np.argmax(np.divide(values, [_LENGTHS[benchmark.metric](choice) for choice in choices]))
        judged = _score(name, benchmark, sample)
        return ItemResult(name, item, values, int(likeliest), answer, question, judged=judged)
    text = sample["resps"][0][0]
    if benchmark.program:
        result = judge_program(benchmark.program, row, text)
        chosen, answer, judged = result.reason or PASSED, PASSED, result.passed
    else:
        chosen, answer = str(sample["filtered_resps"][0]), str(sample["target"])
        judged = _score(name, benchmark, sample)
    num_tokens = len(lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    return ItemResult(name, item, (), chosen, answer, question, text, num_tokens, judged)


def _score(name: str, benchmark: Benchmark, sample: Mapping[str, Any]) -> bool:
    """Return whether the harness counts a sample as right; a comparison knows no answer that is half right."""
    if benchmark.metric not in sample["metrics"]:
        raise ParameterError(
            f"benchmark '{name}' is judged by '{benchmark.metric}', but its task measures "
            f"{', '.join(sample['metrics'])}; correct benchmarks.definitions.{name}.metric"
        )
    score = sample[benchmark.metric]
    if score not in (0, 1):
        raise ParameterError(
            f"benchmark '{name}' is judged by '{benchmark.metric}', which gives {score!r} for item "
            f"{sample['doc_id']}, neither right nor wrong; set benchmarks.definitions.{name}.metric to one that "
            "gives 0 or 1"
        )
    return bool(score)


def choose_items(sizes: Mapping[str, int], limit: int | None, seed: int) -> dict[str, list[int]]:
    """Return task -> which of its items to ask, ascending; tasks of which none is asked are left out.

    As with the domains' own tasks, those with the smallest hash of seed and place are taken, so that a larger limit
    only adds items.
    """
    places = [(task, index) for task, size in sizes.items() for index in range(size)]
    if limit is not None:
        places.sort(key=lambda place: sha256(f"{seed}/{place[0]}/{place[1]}".encode()).digest())
    chosen = sorted(places[:limit])
    return {task: [index for name, index in chosen if name == task] for task in sizes if task in dict(chosen)}


@cache
def _registry() -> TaskManager:
    """Return the harness's registry; reading it takes seconds."""
    with quiet(*NOISY):
        return TaskManager()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Fix Python's random numbers inside the block, which tasks shuffle choices with, and restore them after it."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


@contextmanager
def _plain_data() -> Iterator[None]:
    """Prepare data inside the block without bars, and without what another run left shuffled its way in a cache."""
    had_bars, had_caches = datasets.is_progress_bar_enabled(), datasets.is_caching_enabled()
    datasets.disable_progress_bars()
    datasets.disable_caching()
    try:
        yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        if had_caches:
            datasets.enable_caching()


_UNAVAILABLE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    jinja2.TemplateError,
    HfHubHTTPError,
    datasets.exceptions.DatasetsError,
)
"""What loading a data set ends in that is not there, not allowed, or has other columns than is said."""
