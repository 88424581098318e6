"""Small Python expressions with their value and three values a careless reader might give."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

# fmt: off
_WORDS = (
    "red", "sun", "moon", "code", "data", "tree", "node", "alpha", "delta", "omega", "queue",
    "stack", "apple", "river", "stone", "cloud", "light", "paper", "green", "table",
)
# fmt: on


@dataclass(frozen=True)
class Expression:
    """The text of an expression, its value and three wrong values, all as Python prints them."""

    text: str
    value: str
    wrong: tuple[str, ...]


def make_expression(rng: random.Random) -> Expression:
    """Make up one expression whose four values differ."""
    while True:
        text, values = rng.choice(_MAKERS)(rng)
        shown = [repr(value) for value in values]
        if len(set(shown)) == len(shown):
            return Expression(text, shown[0], tuple(rng.sample(shown[1:], 3)))


def _index(rng: random.Random) -> tuple[str, list[object]]:
    numbers = rng.sample(range(1, 30), 4)
    place = rng.choice([-2, -1, 0, 1, 2, 3])
    value = numbers[place]
    return f"{numbers}[{place}]", [value, *(number for number in numbers if number != value)]


def _slice(rng: random.Random) -> tuple[str, list[object]]:
    numbers = rng.sample(range(1, 10), 4)
    options: dict[str, object] = {
        "[1:]": numbers[1:],
        "[:3]": numbers[:3],
        "[::-1]": numbers[::-1],
        "[:2]": numbers[:2],
        "[2:]": numbers[2:],
    }
    return _one_of(rng, options, f"{numbers}{{}}")


def _case(rng: random.Random) -> tuple[str, list[object]]:
    word = rng.choice(_WORDS)
    options: dict[str, object] = {
        ".upper()": word.upper(),
        ".title()": word.title(),
        "[::-1]": word[::-1],
        "[1:]": word[1:],
        "[:-1]": word[:-1],
        "[0]": word[0],
        " * 2": word * 2,
    }
    return _one_of(rng, options, f"{word!r}{{}}")


def _one_of(rng: random.Random, options: dict[str, object], template: str) -> tuple[str, list[object]]:
    chosen, *others = rng.sample(sorted(options), 4)
    return template.format(chosen), [options[chosen], *(options[other] for other in others)]


def _split(rng: random.Random) -> tuple[str, list[object]]:
    first, second, third = rng.sample(_WORDS, 3)
    parts = [first, second, third]
    return f"'{first},{second},{third}'.split(',')", [parts, parts[::-1], [first, second], [second, third]]


def _join(rng: random.Random) -> tuple[str, list[object]]:
    first, second = rng.sample(_WORDS, 2)
    sign, other = rng.sample("-+_,", 2)
    right = f"{first}{sign}{second}"
    return f"'{sign}'.join([{first!r}, {second!r}])", [
        right,
        f"{first}{other}{second}",
        f"{second}{sign}{first}",
        f"{second}{other}{first}",
    ]


def _reduction(rng: random.Random) -> tuple[str, list[object]]:
    numbers = rng.sample(range(1, 10), 4)
    options: dict[str, object] = {
        "max": max(numbers),
        "min": min(numbers),
        "len": len(numbers),
        "sum": sum(numbers),
        "sorted": sorted(numbers),
    }
    return _one_of(rng, options, f"{{}}({numbers})")


def _range(rng: random.Random) -> tuple[str, list[object]]:
    low = rng.randrange(0, 12)
    high = low + rng.randrange(2, 5)
    spans = [(low, high), (low, high + 1), (low + 1, high + 1), (low + 1, high)]
    return f"list(range({low}, {high}))", [list(range(*span)) for span in spans]


def _length(rng: random.Random) -> tuple[str, list[object]]:
    word = "".join(rng.sample("abcdefghk", rng.randrange(2, 8)))
    step = rng.randrange(0, 4)
    return f"len({word!r}) + {step}", _around(rng, len(word) + step)


def _division(rng: random.Random) -> tuple[str, list[object]]:
    number, divisor = rng.randrange(10, 60), rng.randrange(2, 10)
    if rng.random() < 0.5:
        return f"{number} % {divisor}", _around(rng, number % divisor)
    return f"{number} // {divisor}", _around(rng, number // divisor)


def _around(rng: random.Random, value: int) -> list[object]:
    near = [value + step for step in (-3, -2, -1, 1, 2, 3) if value + step >= 0]
    return [value, *rng.sample(near, 3)]


def _lookup(rng: random.Random) -> tuple[str, list[object]]:
    names, numbers = rng.sample("abcdxyz", 4), rng.sample(range(1, 30), 4)
    table = dict(zip(names, numbers, strict=True))
    name = rng.choice(names)
    return f"{table}[{name!r}]", [table[name], *(number for key, number in table.items() if key != name)]


def _condition(rng: random.Random) -> tuple[str, list[object]]:
    left, right = rng.sample(range(1, 50), 2)
    first, second, third, fourth = rng.sample(_WORDS, 4)
    value, other = (first, second) if left > right else (second, first)
    text = f"{first!r} if {left} > {right} else {second!r}"
    return text, [value, other, third, fourth]


_Maker = Callable[[random.Random], tuple[str, list[object]]]
_MAKERS: tuple[_Maker, ...] = (
    _index,
    _slice,
    _case,
    _split,
    _join,
    _reduction,
    _range,
    _length,
    _division,
    _lookup,
    _condition,
)
