"""Mathematics items: generated arithmetic, equations, sequences and word problems with worked answers."""

from __future__ import annotations

import random
from collections.abc import Callable

from moe_compress.reference.items import DomainItems, Item, some, without_repeats

QUOTAS = {
    "addition": 180,
    "subtraction": 180,
    "multiplication": 150,
    "division": 120,
    "equation": 170,
    "sequence": 120,
    "percentage": 80,
    "word problem": 200,
}
_NUM_ITEMS = 62000
_NAMES = (
    "Ann",
    "Ben",
    "Cara",
    "Dan",
    "Eve",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jon",
    "Kate",
    "Leo",
    "Mia",
    "Noah",
)
_THINGS = (
    "apples",
    "books",
    "coins",
    "eggs",
    "marbles",
    "pens",
    "stamps",
    "shells",
    "tickets",
    "cards",
    "nuts",
)
_BOXES = ("boxes", "bags", "baskets", "crates", "jars", "packs")


def math_items(rng: random.Random) -> DomainItems:
    """Make up problems of every kind, each with a worked answer."""
    makers = [maker for maker, weight in _MAKERS for _ in range(weight)]
    items = [rng.choice(makers)(rng) for _ in range(_NUM_ITEMS)]
    return DomainItems("math", without_repeats(items), (), QUOTAS, facts_stay=False)


def near_numbers(rng: random.Random, value: int, steps: tuple[int, ...] = (1, 2, 10)) -> tuple[str, ...]:
    """Return three different non-negative numbers a slip away from the value, or none if two slips agree."""
    near = [value + sign * step for step in steps for sign in (-1, 1) if value + sign * step >= 0]
    drawn = rng.sample(near, 3)
    return tuple(map(str, drawn)) if len(set(drawn)) == 3 else ()


def _number(rng: random.Random, largest_digits: int = 3) -> int:
    digits = rng.randint(1, largest_digits)
    return rng.randrange(10 ** (digits - 1), 10**digits)


def _addition(rng: random.Random) -> Item:
    left, right = _number(rng), _number(rng)
    total = left + right
    return Item(
        kind="addition",
        question=some(rng, ("What is {a} + {b}?", "What is the sum of {a} and {b}?"), a=left, b=right),
        answer=str(total),
        explanation=f"{left} + {right} = {total}, and {total} - {right} = {left}.",
        statements=(f"{left} + {right} = {total}", f"{left} plus {right} is {total}."),
        slips=near_numbers(rng, total),
    )


def _subtraction(rng: random.Random) -> Item:
    right, rest = _number(rng), _number(rng)
    left = right + rest
    return Item(
        kind="subtraction",
        question=some(rng, ("What is {a} - {b}?", "What is {a} minus {b}?"), a=left, b=right),
        answer=str(rest),
        explanation=f"{left} - {right} = {rest}, because {rest} + {right} = {left}.",
        statements=(f"{left} - {right} = {rest}", f"Taking {right} from {left} leaves {rest}."),
        slips=near_numbers(rng, rest),
    )


def _multiplication(rng: random.Random) -> Item:
    left, right = rng.randrange(2, 100), rng.randrange(2, 13)
    product = left * right
    return Item(
        kind="multiplication",
        question=some(rng, ("What is {a} * {b}?", "What is {a} times {b}?"), a=left, b=right),
        answer=str(product),
        explanation=f"{left} * {right} = {left // 10 * 10} * {right} + {left % 10} * {right} = {product}.",
        statements=(f"{left} * {right} = {product}", f"{right} times {left} is {product}."),
        slips=near_numbers(rng, product, (1, right, right + 10)),
    )


def _division(rng: random.Random) -> Item:
    divisor, quotient = rng.randrange(2, 13), rng.randrange(2, 60)
    number = divisor * quotient
    return Item(
        kind="division",
        question=some(rng, ("What is {a} / {b}?", "What is {a} divided by {b}?"), a=number, b=divisor),
        answer=str(quotient),
        explanation=f"{number} / {divisor} = {quotient}, because {quotient} * {divisor} = {number}.",
        statements=(f"{number} / {divisor} = {quotient}", f"{divisor} goes into {number} {quotient} times."),
        slips=near_numbers(rng, quotient),
    )


def _equation(rng: random.Random) -> Item:
    letter = rng.choice("xyznt")
    root, factor, shift = rng.randrange(1, 21), rng.randrange(1, 10), rng.randrange(1, 31)
    term = letter if factor == 1 else f"{factor}{letter}"
    sign, right = rng.choice([("+", factor * root + shift), ("-", factor * root - shift)])
    opposite = "subtract" if sign == "+" else "add"
    return Item(
        kind="equation",
        question=f"If {term} {sign} {shift} = {right}, what is {letter}?",
        answer=str(root),
        explanation=f"{opposite.title()} {shift} on both sides: {term} = {factor * root}, so {letter} = {root}.",
        statements=(f"{term} {sign} {shift} = {right} gives {term} = {factor * root}, so {letter} = {root}.",),
        slips=near_numbers(rng, root, (1, 2, 3)),
    )


def _sequence(rng: random.Random) -> Item:
    start, step = rng.randrange(1, 60), rng.randrange(2, 16)
    terms = [start + step * place for place in range(5)]
    if rng.random() < 0.4:
        terms = terms[::-1]
        step = -step
    shown = ", ".join(map(str, terms[:4]))
    return Item(
        kind="sequence",
        question=some(rng, ("Which number comes next: {s}?", "How does this go on: {s}?"), s=shown),
        answer=str(terms[4]),
        explanation=f"Each number is the one before {'plus' if step > 0 else 'minus'} {abs(step)}.",
        statements=(f"{shown}, {terms[4]} (step {step})",),
        slips=near_numbers(rng, terms[4], (1, 2, 10)),
    )


def _percentage(rng: random.Random) -> Item:
    percent, whole = 5 * rng.randrange(1, 20), 20 * rng.randrange(1, 51)
    part = percent * whole // 100
    return Item(
        kind="percentage",
        question=f"What is {percent}% of {whole}?",
        answer=str(part),
        explanation=f"{percent} parts in a hundred of {whole} are {part}.",
        statements=(f"{percent}% of {whole} = {part}",),
        slips=near_numbers(rng, part, (1, 5, 10)),
    )


def _word_problem(rng: random.Random) -> Item:
    return rng.choice((_gain, _loss, _groups, _sharing, _ages))(rng)


def _story(question: str, answer: int, working: str, slips: tuple[str, ...]) -> Item:
    return Item("word problem", question, str(answer), working, slips=slips)


def _gain(rng: random.Random) -> Item:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    had, got = rng.randrange(3, 90), rng.randrange(2, 60)
    question = f"{name} has {had} {thing} and gets {got} more. How many {thing} does {name} have now?"
    return _story(question, had + got, f"{had} + {got} = {had + got}.", near_numbers(rng, had + got))


def _loss(rng: random.Random) -> Item:
    name, thing = rng.choice(_NAMES), rng.choice(_THINGS)
    left, gone = rng.randrange(2, 70), rng.randrange(2, 40)
    verb = rng.choice(("gives away", "loses", "sells"))
    question = f"{name} has {left + gone} {thing} and {verb} {gone}. How many {thing} are left?"
    return _story(question, left, f"{left + gone} - {gone} = {left}.", near_numbers(rng, left))


def _groups(rng: random.Random) -> Item:
    box, thing = rng.choice(_BOXES), rng.choice(_THINGS)
    boxes, each = rng.randrange(2, 13), rng.randrange(2, 26)
    question = f"There are {boxes} {box} with {each} {thing} in each. How many {thing} are there?"
    return _story(question, boxes * each, f"{boxes} * {each} = {boxes * each}.", near_numbers(rng, boxes * each))


def _sharing(rng: random.Random) -> Item:
    thing = rng.choice(_THINGS)
    people, each = rng.randrange(2, 13), rng.randrange(2, 26)
    question = f"{people} friends share {people * each} {thing} equally. How many {thing} does each one get?"
    return _story(question, each, f"{people * each} / {people} = {each}.", near_numbers(rng, each))


def _ages(rng: random.Random) -> Item:
    younger, older = rng.sample(_NAMES, 2)
    age, gap = rng.randrange(3, 60), rng.randrange(2, 20)
    question = f"{younger} is {age} years old and {older} is {gap} years older. How old is {older}?"
    return _story(question, age + gap, f"{age} + {gap} = {age + gap}.", near_numbers(rng, age + gap))


_MAKERS: tuple[tuple[Callable[[random.Random], Item], int], ...] = (
    (_addition, 4),
    (_subtraction, 4),
    (_multiplication, 3),
    (_division, 2),
    (_equation, 3),
    (_sequence, 2),
    (_percentage, 1),
    (_word_problem, 4),
)
