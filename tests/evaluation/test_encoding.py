"""Context and choice are cut apart where the context alone ends."""

import pytest

from moe_compress.errors import DataError
from moe_compress.evaluation.encoding import context_length, encode_items
from moe_compress.evaluation.tasks import BenchmarkItem, read_items


def test_context_and_choices_join_to_the_whole(tokenizer, benchmark_file):
    items = read_items(benchmark_file)
    for item, encoded in zip(items, encode_items(tokenizer, items, 96), strict=True):
        assert list(encoded.context) == tokenizer(item.context)["input_ids"]
        for text, choice in zip(item.continuations, encoded.choices, strict=True):
            assert [*encoded.context, *choice] == tokenizer(item.context + text)["input_ids"]


def test_the_last_token_is_predicted_not_read(tokenizer):
    item = BenchmarkItem("q", "Which?", ("a", "b"), 0)
    (encoded,) = encode_items(tokenizer, [item], 96)
    longest = len(encoded.context) + max(map(len, encoded.choices))
    encode_items(tokenizer, [item], longest - 1)
    with pytest.raises(DataError, match=f"item 'q' is {longest} tokens long, but the model reads {longest - 2}"):
        encode_items(tokenizer, [item], longest - 2)


def test_a_choice_needs_a_token(tokenizer):
    without_spaces = _Deaf(tokenizer)
    with pytest.raises(DataError, match="choice 'b' of item 'q' adds no token"):
        encode_items(without_spaces, [BenchmarkItem("q", "Which?", ("a", "b"), 0)], 96)


def test_the_context_length_is_the_models(model):
    assert context_length(model) == 96


class _Deaf:
    """A tokenizer that drops the last choice, as one without a token for it may."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts):
        return self.tokenizer([text.removesuffix(" b") for text in texts])
