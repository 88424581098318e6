"""Items are read with errors that name the place, and a seeded subset is always the same one."""

import json

import pytest

from moe_compress.errors import DataError, EvaluationError
from moe_compress.evaluation.tasks import BenchmarkTask, load_task, read_items, select_items

GOOD = {"id": "a", "question": "Which?", "choices": ["this", "that"], "answer": 1}


def write(tmp_path, *lines):
    file = tmp_path / "items.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return file


def test_items_are_put_the_way_demonstrations_are(tmp_path):
    (item,) = read_items(write(tmp_path, GOOD))
    assert item.context == "Question: Which?\nAnswer:"
    assert item.continuations == (" this", " that")
    assert item.answer == 1


def test_a_subset_is_seeded_stable_and_nested(tmp_path):
    items = read_items(write(tmp_path, *[GOOD | {"id": f"item-{n}"} for n in range(40)]))
    few, more = select_items(items, 10, seed=3), select_items(items, 20, seed=3)
    assert len(few) == 10 and len(more) == 20
    assert set(few) < set(more)
    assert few == select_items(items, 10, seed=3)
    assert set(few) == set(select_items(items[::-1], 10, seed=3))
    assert few != select_items(items, 10, seed=4)
    assert [item.id for item in few] == sorted((item.id for item in few), key=lambda i: int(i[5:]))
    assert select_items(items, 100, seed=3) == items


def test_the_subset_does_not_change_with_a_release(tmp_path):
    # Results are compared over months, so the choice is pinned: the smallest sha256 of "0/item-...".
    items = read_items(write(tmp_path, *[GOOD | {"id": f"item-{n}"} for n in range(40)]))
    chosen = [item.id for item in select_items(items, 4, seed=0)]
    assert chosen == ["item-2", "item-8", "item-19", "item-31"]


def test_the_digest_tells_what_is_asked(tmp_path):
    file = write(tmp_path, *[GOOD | {"id": f"item-{n}"} for n in range(10)])
    task = load_task("any", file, limit=5)
    assert task.digest == load_task("another name", file, limit=5).digest
    assert task.digest != load_task("any", file, limit=6).digest
    assert task.digest != load_task("any", file, limit=5, seed=1).digest
    assert load_task("any", file).digest == BenchmarkTask("any", read_items(file)).digest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", 7),
        ("question", " "),
        ("choices", "this"),
        ("choices", ["this", ""]),
        ("choices", ["this"]),
        ("choices", ["same", "same"]),
        ("answer", 2),
        ("answer", "1"),
        ("answer", True),
    ],
)
def test_a_bad_field_is_named_with_its_line(tmp_path, field, value):
    file = write(tmp_path, GOOD, "", GOOD | {"id": "b", field: value})
    with pytest.raises(DataError, match=rf"line 3: field '{field}'"):
        read_items(file)


def test_a_field_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="line 1: field 'choices' is None"):
        read_items(write(tmp_path, {"id": "a", "question": "Which?", "answer": 0}))


@pytest.mark.parametrize(("line", "message"), [("{", "line 1 is not JSON"), ("[1]", "line 1 is .*not an object")])
def test_a_line_that_is_no_object_is_named(tmp_path, line, message):
    with pytest.raises(DataError, match=message):
        read_items(write(tmp_path, line))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085"])
def test_a_line_ends_where_json_lines_end(tmp_path, mark, end):
    """JSON allows these marks inside a text, where Python would begin a new line."""
    first, second = (GOOD | {"id": name, "question": f"Which{mark}of them?"} for name in "ab")
    file = tmp_path / "items.jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in (first, second)]
    file.write_bytes("".join(f"{line}{end}" for line in [*lines, ""]).encode())
    assert [(item.id, item.question) for item in read_items(file)] == [
        (name, f"Which{mark}of them?") for name in "ab"
    ]
    file.write_bytes(end.join([*lines, "", "{"]).encode())
    with pytest.raises(DataError, match="line 4 is not JSON"):
        read_items(file)


def test_an_id_stands_once(tmp_path):
    with pytest.raises(DataError, match="id 'a' more than once"):
        read_items(write(tmp_path, GOOD, GOOD))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*absent\.jsonl"):
        load_task("any", tmp_path / "absent.jsonl")


def test_a_task_without_items_is_refused(tmp_path):
    with pytest.raises(DataError, match="'any' has no items"):
        load_task("any", write(tmp_path, GOOD), limit=0)


def test_the_likeliest_choice_is_chosen(tmp_path):
    task = load_task("any", write(tmp_path, GOOD, GOOD | {"id": "b"}))
    first, second = task.results([[-2.0, -1.0], [-1.0, -2.0]])
    assert (first.item, first.chosen, first.is_correct) == ("a", 1, True)
    assert (second.item, second.chosen, second.is_correct) == ("b", 0, False)


def test_a_likelihood_that_is_no_number_is_refused(tmp_path):
    task = load_task("any", write(tmp_path, GOOD))
    with pytest.raises(EvaluationError, match="item 'a' of task 'any'"):
        task.results([[float("nan"), -1.0]])
