"""Made-up problems have the answers they claim."""

from __future__ import annotations

import random
import re
from itertools import islice, pairwise
from pathlib import Path

import pytest

from moe_compress.errors import DataError
from moe_compress.reference.expressions import make_expression
from moe_compress.reference.finance import finance_items
from moe_compress.reference.items import text_key
from moe_compress.reference.math import math_items
from moe_compress.reference.sources import Sense, read_standard_library, read_wordnet


@pytest.fixture(scope="module")
def problems():
    return math_items(random.Random(1)).items


def of_kind(items, kind, number=300):
    return list(islice((item for item in items if item.kind == kind), number))


@pytest.mark.parametrize("kind", ["addition", "subtraction", "multiplication", "division", "percentage"])
def test_statements_of_sums_are_true(problems, kind):
    for item in of_kind(problems, kind):
        left, right = item.statements[0].replace("% of", "/ 100 *").split(" = ")
        assert eval(left) == pytest.approx(int(right)), item
        assert item.answer == right


def test_equations_are_solved(problems):
    for item in of_kind(problems, "equation"):
        letter = item.question.split("what is ")[1].rstrip("?")
        left, right = item.question.removeprefix("If ").split(",")[0].split(" = ")
        left = re.sub(rf"(\d){letter}", rf"\1*{letter}", left)
        assert eval(left, {letter: int(item.answer)}) == int(right), item


def test_sequences_go_on(problems):
    for item in of_kind(problems, "sequence"):
        terms = [*map(int, re.findall(r"-?\d+", item.question)), int(item.answer)]
        assert len({after - before for before, after in pairwise(terms)}) == 1


def test_wrong_answers_are_three_and_wrong(problems):
    for item in problems[:3000]:
        assert len({item.answer, *item.slips}) == 4, item


def test_expressions_have_their_values():
    rng = random.Random(2)
    for _ in range(500):
        expression = make_expression(rng)
        assert repr(eval(expression.text)) == expression.value
        assert len({expression.value, *expression.wrong}) == 4


def test_books_balance():
    sense = Sense("loan", "noun", "possession", "money lent", (), (), "debt", 3)
    items = finance_items([sense], random.Random(1)).items
    for item in of_kind(items, "balance"):
        amounts = dict(re.findall(r"(assets|liabilities|equity) of (\d+)", item.question))
        asked = item.question.removesuffix("?").split()[-1]
        amounts[asked] = item.answer
        assert int(amounts["assets"]) == int(amounts["liabilities"]) + int(amounts["equity"]), item
    for item in of_kind(items, "interest"):
        capital, rate, years = re.search(r"(\d+) dollars.*?(\d+)%.*?(\d+) years", item.question).groups()
        assert int(capital) * int(rate) * int(years) == 100 * int(item.answer), item
    assert all(len({item.answer, *found}) == 4 for item in items for found in (item.wrong, item.slips) if found)


def test_text_key_collapses_case_signs_and_blanks():
    assert text_key(" Hello,\n WORLD_1! ") == "hello world 1"


def test_a_missing_wordnet_says_what_to_do(tmp_path: Path):
    with pytest.raises(DataError, match=r"no WordNet in .*wordnet-base"):
        read_wordnet(tmp_path)


def test_wordnet_lines_are_read(tmp_path: Path):
    # Two synsets in WordNet's own layout: "cat" (lexicographer file 05, animal) below "animal".
    animal = '00000001 05 n 01 animal 0 001 ~ 00000002 n 0000 | a living thing; "animals eat"  '
    cat = "00000002 05 n 02 cat 0 true_cat 0 001 @ 00000001 n 0000 | a small animal  "
    (tmp_path / "data.noun").write_text(f"  1 licence\n{animal}\n{cat}\n")
    (tmp_path / "data.verb").write_text("")
    (tmp_path / "cntlist.rev").write_text("cat%1:05:00:: 1 7\n")
    senses = read_wordnet(tmp_path)
    assert senses[0] == Sense("cat", "noun", "animal", "a small animal", (), ("true cat",), "animal", 7)
    assert senses[1].examples == ("animals eat",)


def test_the_standard_library_is_read_whole():
    functions = {f"{function.module}.{function.name}": function for function in read_standard_library()}
    quote = functions["shlex.quote"]
    assert quote.arguments == "s"
    assert quote.source.startswith("def quote(s):")
    assert quote.summary == "Return a shell-escaped version of the string *s*."
