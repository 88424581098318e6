"""Each value comes back as it was saved, under its run's key and nowhere else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from kedro.io import DatasetError

from moe_compress.datasets import (
    CompatibilityDataset,
    EvaluationDataset,
    FolderDataset,
    NewestPlansDataset,
    PlanDataset,
    RowsDataset,
    RunKeysDataset,
    StatisticsDataset,
    TuningDataset,
)
from moe_compress.errors import DataError, PlanError
from moe_compress.types import (
    CompressionPlan,
    EngineVerdict,
    EvaluationResult,
    ExpertStatistics,
    ItemResult,
    MoELayout,
    Reason,
    RouterNoise,
    StatisticsParts,
    TuningCourse,
    TuningRecord,
    TuningStep,
    WrittenText,
    add_in_order,
    pruning_groups,
)

LAYOUT = MoELayout((1, 2), (4, 4), 2)
KEYS = {"collect": "a" * 64, "select": "b" * 64}


def bound(kind, folder, stage="collect", keys=KEYS):
    dataset = kind(filepath=str(folder), basename="value", stage=stage)
    dataset.bind(keys)
    return dataset


def make_plan(*kept):
    scores = np.random.default_rng(0).random((2, 4))
    return CompressionPlan(LAYOUT, tuple(pruning_groups(row) for row in kept), "toy", scores, {"seed": "1"})


def test_statistics_come_back_to_the_bit(tmp_path):
    sums = {"count": np.full((2, 4), 3.0), "gate": np.random.default_rng(0).random((2, 4))}
    saved = ExpertStatistics("medical", LAYOUT, sums, 6, {"base_id": "x"})
    dataset = bound(StatisticsDataset, tmp_path)
    assert not dataset.exists()
    dataset.save(saved)
    loaded = bound(StatisticsDataset, tmp_path).load()
    assert dataset.exists() and dataset.path == tmp_path / ("a" * 12) / "value"
    assert (loaded.domain, loaded.layout, loaded.num_tokens) == ("medical", LAYOUT, 6)
    assert loaded.provenance == {"base_id": "x"}
    for name in sums:
        np.testing.assert_array_equal(loaded[name], sums[name])


def test_parts_and_maxima_come_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(1)
    parts = StatisticsParts((1, 4), {"gate": rng.random((4, 2, 4))}, (2, 0, 3, 1), (1, 0, 2, 1))
    gate = add_in_order(parts.sums["gate"])
    saved = ExpertStatistics("medical", LAYOUT, {"gate": gate}, 6, {}, {"max_norm": rng.random((2, 4))}, parts)
    bound(StatisticsDataset, tmp_path).save(saved)
    loaded = bound(StatisticsDataset, tmp_path).load()
    np.testing.assert_array_equal(loaded.parts.sums["gate"], parts.sums["gate"])
    np.testing.assert_array_equal(loaded.maxima["max_norm"], saved.maxima["max_norm"])
    assert set(loaded.sums) == set(loaded.parts.sums) == {"gate"} and set(loaded.maxima) == {"max_norm"}
    assert (loaded.parts.ends, loaded.parts.num_tokens) == ((1, 4), (2, 0, 3, 1))
    assert loaded.parts.num_demonstrations == (1, 0, 2, 1)


def test_another_key_is_another_value(tmp_path):
    bound(PlanDataset, tmp_path).save(make_plan([0, 1], [2, 3]))
    assert not bound(PlanDataset, tmp_path, keys={"collect": "c" * 64}).exists()


def test_a_value_has_no_place_outside_a_run(tmp_path):
    dataset = PlanDataset(filepath=str(tmp_path), basename="value", stage="collect")
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="no key outside a run"):
        dataset.load()


def test_plans_come_back(tmp_path):
    saved = make_plan([0, 1], [2, 3])
    dataset = bound(PlanDataset, tmp_path)
    dataset.save(saved)
    loaded = dataset.load()
    assert (loaded.groups, loaded.method, loaded.digest) == (saved.groups, "toy", saved.digest)
    np.testing.assert_array_equal(loaded.scores, saved.scores)


def test_a_plan_that_gives_the_groups_up_and_adds_noise_comes_back(tmp_path):
    layout = MoELayout((1, 2), (4, 4), 2, num_groups=2, topk_groups=1)
    noise = RouterNoise(0.1, 7)
    groups = (pruning_groups([0, 1, 2]),) * 2
    saved = CompressionPlan(layout, groups, "toy", router_groups="flatten", router_noise=noise)
    dataset = bound(PlanDataset, tmp_path)
    dataset.save(saved)
    assert dataset.load() == saved


def test_verdicts_on_engines_come_back(tmp_path):
    saved = (
        EngineVerdict("transformers", "loads", was_run=True),
        EngineVerdict(
            "vLLM", "no", False, (Reason("refuses", "layers differ", "a.py"), Reason("slower", "b", "c"))
        ),
    )
    dataset = bound(CompatibilityDataset, tmp_path)
    dataset.save(saved)
    assert dataset.load() == saved


def test_a_plan_edited_by_hand_is_refused(tmp_path):
    dataset = bound(PlanDataset, tmp_path)
    dataset.save(make_plan([0, 1], [2, 3]))
    content = json.loads(dataset.path.read_text())
    content["layers"][0]["groups"][0] = 3
    dataset.path.write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="was changed after it was planned") as caught:
        dataset.load()
    assert isinstance(caught.value.__cause__, PlanError)


def test_the_newest_plan_of_each_domain(tmp_path):
    for domain, key, kept in (("math", "a", [0, 1]), ("math", "b", [2, 3]), ("code", "a", [1, 2])):
        dataset = PlanDataset(filepath=str(tmp_path / domain), basename="plan.json", stage="select")
        dataset.bind({"select": key * 64})
        dataset.save(make_plan(kept, kept))
    plans = NewestPlansDataset(filepath=str(tmp_path)).load()
    assert {domain: plan.kept[0] for domain, plan in plans.items()} == {"math": (2, 3), "code": (1, 2)}


def test_evaluations_come_back(tmp_path):
    items = (
        ItemResult("quiz", "a", (-1.25, -0.5), 1, 0),
        ItemResult("quiz", "b", (-3.0, -4.0), 0, 0),
        ItemResult("sums", "s/0", (), "21", "21", "1 and 20?", "It is 21.", 4, True),
    )
    written = (WrittenText("quiz", "a", "on and on", 3, False, True, 0.5),)
    saved = EvaluationResult("model", items, {"medical": 3.5}, 10, 20, written, 30.0, {"x": "y"})
    dataset = bound(EvaluationDataset, tmp_path)
    dataset.save(saved)
    assert dataset.load() == saved


def test_an_evaluation_from_before_written_answers_is_still_read(tmp_path):
    dataset = bound(EvaluationDataset, tmp_path)
    dataset.save(EvaluationResult("model", (ItemResult("quiz", "a", (-1.25, -0.5), 1, 0),), {}, 10, 20))
    content = json.loads(dataset.path.read_text())
    (item,) = content["items"]
    content["items"] = [{name: item[name] for name in ("task", "item", "log_likelihoods", "chosen", "answer")}]
    dataset.path.write_text(json.dumps(content))
    assert dataset.load().items == (ItemResult("quiz", "a", (-1.25, -0.5), 1, 0),)


def test_run_keys_exist_during_a_run_only():
    dataset = RunKeysDataset()
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="only during a run"):
        dataset.load()
    dataset.bind(KEYS)
    assert dataset.load() == KEYS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("demonstrations.jsonl", '{"question": "a?", "answer": "1"}\n{"question": "b, c?", "answer": "2"}\n'),
        ("demonstrations.csv", 'question,answer\na?,1\n"b, c?",2\n'),
    ],
)
def test_rows_in_the_users_format(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    rows = RowsDataset(filepath=str(tmp_path / "demonstrations.jsonl")).load()
    assert [row["question"] for row in rows] == ["a?", "b, c?"]


def test_edited_rows_are_read_again(tmp_path):
    path = tmp_path / "demonstrations.jsonl"
    for question in ("old", "new"):
        path.write_text(json.dumps({"question": question, "answer": "1"}) + "\n")
        assert RowsDataset(filepath=str(path)).load()[0]["question"] == question


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("{not json\n", "cannot be read as jsonl"),
        ('{"question": "a?", "response": "b"}\n', "has no column 'answer' but 'question', 'response'; rename one"),
    ],
)
def test_rows_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        RowsDataset(filepath=str(path)).load()
    assert isinstance(caught.value.__cause__, DataError)


def test_missing_inputs_say_where_they_belong(tmp_path):
    with pytest.raises(DatasetError, match="put a file there with columns"):
        RowsDataset(filepath=str(tmp_path / "demonstrations.jsonl")).load()
    with pytest.raises(DatasetError, match="no folder"):
        FolderDataset(filepath=str(tmp_path / "nowhere")).load()


def test_inputs_are_never_written(tmp_path):
    for dataset in (
        RowsDataset(filepath=str(tmp_path / "rows.csv")),
        FolderDataset(filepath=str(tmp_path)),
        NewestPlansDataset(filepath=str(tmp_path)),
        RunKeysDataset(),
    ):
        with pytest.raises(DatasetError):
            dataset.save({})


def test_how_a_model_was_tuned_comes_back(tmp_path):
    course = TuningCourse(0.6, 2, (TuningStep(1, float("nan"), 0.7), TuningStep(2, 0.5, 0.55)))
    record = TuningRecord(course, 8, 2, 1, 100, 1000, ("model.layers.*.mlp.experts",))
    dataset = bound(TuningDataset, tmp_path)
    dataset.save((record,))
    [loaded] = dataset.load()
    assert repr(loaded) == repr(record) and loaded.course.loss_after == 0.55
    dataset.save(())
    assert dataset.load() == ()
