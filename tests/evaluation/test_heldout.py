"""Held-out texts are read with errors that name the place, and a limit always takes the same ones."""

import json

import pytest

from moe_compress.errors import DataError
from moe_compress.evaluation.heldout import read_heldout, read_texts, take_tokens


def write(tmp_path, *texts):
    file = tmp_path / "heldout.jsonl"
    file.write_text("\n\n".join(json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)))
    return file


def test_all_texts_or_a_nested_seeded_subset_in_order(tmp_path):
    texts = [f"text {n}" for n in range(20)]
    file = write(tmp_path, *texts)
    assert read_texts(file, None, 0) == texts
    few, more = read_texts(file, 5, 0), read_texts(file, 10, 0)
    assert len(few) == 5 and set(few) < set(more)
    assert more == [text for text in texts if text in more]
    assert few != read_texts(file, 5, 1)


def test_a_line_without_text_is_named(tmp_path):
    with pytest.raises(DataError, match=r"line 3: field 'text' is ' '"):
        read_texts(write(tmp_path, "one", " "), None, 0)


def test_a_file_without_texts_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no texts"):
        read_texts(write(tmp_path), None, 0)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file .*absent\.jsonl"):
        read_texts(tmp_path / "absent.jsonl", None, 0)


def test_domains_without_held_out_text_are_left_out(tmp_path):
    (tmp_path / "math").mkdir()
    (tmp_path / "math/heldout.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    assert read_heldout(tmp_path, ["code", "math"], None, 0) == {"math": ["one"]}


def test_texts_are_taken_in_a_seeded_order_until_there_are_enough_tokens(tokenizer):
    texts = [f"2 + {number} = ?" for number in range(30)]
    lengths = {text: len(tokenizer(text)["input_ids"]) for text in texts}
    taken = take_tokens(tokenizer, texts, 60, seed=1)
    assert sum(lengths[text] for text in taken) >= 60 > sum(lengths[text] for text in taken[:-1])
    assert taken == take_tokens(tokenizer, texts[::-1], 60, seed=1) != take_tokens(tokenizer, texts, 60, seed=2)
    assert taken != texts[: len(taken)]
    assert sorted(take_tokens(tokenizer, texts, 10_000, seed=1)) == sorted(texts)
