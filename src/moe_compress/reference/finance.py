"""Finance items: bookkeeping, interest, margins and ratios, made up; words of possession from WordNet."""

from __future__ import annotations

import random
from collections.abc import Callable

from moe_compress.reference.items import DomainItems, Item, some, without_repeats
from moe_compress.reference.math import near_numbers
from moe_compress.reference.sources import Sense

QUOTAS = {
    "balance": 200,
    "interest": 160,
    "profit": 180,
    "journal": 250,
    "ratio": 160,
    "break-even": 100,
    "term": 150,
}
_NUM_ITEMS = 42000
_RATES = (5, 10, 20, 25, 40, 50, 60, 75, 80)
_FIRMS = (
    "a shop",
    "a bakery",
    "a garage",
    "a farm",
    "a studio",
    "a hotel",
    "a school",
    "a clinic",
    "a brewery",
)
_EVENTS: tuple[tuple[str, str, str], ...] = (
    ("pays {n} dollars of rent in cash", "rent expense", "cash"),
    ("pays wages of {n} dollars in cash", "wages expense", "cash"),
    ("pays an insurance bill of {n} dollars in cash", "insurance expense", "cash"),
    ("sells goods for {n} dollars in cash", "cash", "sales revenue"),
    ("sells goods for {n} dollars on credit", "accounts receivable", "sales revenue"),
    ("buys stock for {n} dollars in cash", "inventory", "cash"),
    ("buys stock for {n} dollars on credit", "inventory", "accounts payable"),
    ("buys a machine for {n} dollars in cash", "equipment", "cash"),
    ("buys a machine for {n} dollars on credit", "equipment", "accounts payable"),
    ("borrows {n} dollars from a bank", "cash", "loans payable"),
    ("repays {n} dollars of its loan", "loans payable", "cash"),
    ("receives {n} dollars from a customer who bought on credit", "cash", "accounts receivable"),
    ("pays {n} dollars to a supplier it owed", "accounts payable", "cash"),
    ("takes in {n} dollars from its owner", "cash", "owner's equity"),
    ("pays its owner {n} dollars", "owner's drawings", "cash"),
    ("writes {n} dollars off its machines", "depreciation expense", "accumulated depreciation"),
    ("receives {n} dollars of interest", "cash", "interest revenue"),
    ("pays {n} dollars of interest", "interest expense", "cash"),
    ("pays {n} dollars of tax", "tax expense", "cash"),
)


def finance_items(senses: list[Sense], rng: random.Random) -> DomainItems:
    """Make up problems of every kind and add WordNet's words of possession.

    Args:
        senses: As `read_wordnet` gives them.
        rng: Chooses numbers and wordings.
    """
    makers = [maker for maker, weight in _MAKERS for _ in range(weight)]
    items = [rng.choice(makers)(rng) for _ in range(_NUM_ITEMS)]
    possessions = [sense for sense in senses if sense.category == "possession" and len(sense.gloss) <= 110]
    items += [_term_item(sense, rng) for sense in possessions]
    passages = tuple(text for sense in possessions for text in _term_passages(sense))
    return DomainItems("finance", without_repeats(items), passages, QUOTAS, facts_stay=False)


def _hundreds(rng: random.Random, highest: int = 20) -> int:
    return 100 * rng.randrange(1, highest)


def _item(kind: str, question: str, answer: int, working: str, slips: tuple[str, ...]) -> Item:
    return Item(kind, question, str(answer), working, (_as_sentence(working),), slips=slips)


def _as_sentence(working: str) -> str:
    return f"{working[0].upper()}{working[1:]}"


def _balance(rng: random.Random) -> Item:
    debts, equity = _hundreds(rng, 60), _hundreds(rng, 60)
    assets, firm = debts + equity, rng.choice(_FIRMS)
    asked = rng.choice(("assets", "liabilities", "equity"))
    amounts = {"assets": assets, "liabilities": debts, "equity": equity}
    known = [f"{name} of {amounts[name]}" for name in amounts if name != asked]
    working = {
        "assets": f"assets = liabilities + equity = {debts} + {equity} = {assets}.",
        "liabilities": f"liabilities = assets - equity = {assets} - {equity} = {debts}.",
        "equity": f"equity = assets - liabilities = {assets} - {debts} = {equity}.",
    }[asked]
    question = f"{firm.capitalize()} has {known[0]} and {known[1]} dollars. What are its {asked}?"
    if asked == "equity":
        question = question.replace("What are", "What is")
    return _item("balance", question, amounts[asked], working, _money(rng, amounts[asked]))


def _money(rng: random.Random, value: int) -> tuple[str, ...]:
    return near_numbers(rng, value, (100, 200, 1000))


def _interest(rng: random.Random) -> Item:
    capital, rate, years = _hundreds(rng), rng.randrange(1, 11), rng.randrange(1, 6)
    interest = capital * rate * years // 100
    question = some(
        rng,
        (
            "What simple interest do {c} dollars earn at {r}% in {y} years?",
            "A loan of {c} dollars costs {r}% simple interest a year. How much interest is due after {y} years?",
        ),
        c=capital,
        r=rate,
        y=years,
    )
    working = f"one year gives {capital * rate // 100}; {years} years at {rate}% on {capital} give {interest}."
    return _item("interest", question, interest, working, near_numbers(rng, interest, (1, 10, capital // 100)))


def _profit(rng: random.Random) -> Item:
    cost, profit = 10 * rng.randrange(2, 60), 10 * rng.randrange(1, 40)
    price, firm = cost + profit, rng.choice(_FIRMS)
    asked, question, working = rng.choice(
        (
            (profit, "costs {c} and revenue {p} dollars. What is its profit?", "profit = {p} - {c} = {g}."),
            (
                price,
                "costs {c} and a profit of {g} dollars. What is its revenue?",
                "revenue = {c} + {g} = {p}.",
            ),
            (
                cost,
                "revenue {p} and a profit of {g} dollars. What are its costs?",
                "costs = {p} - {g} = {c}.",
            ),
        )
    )
    words = {"c": cost, "p": price, "g": profit}
    full = f"{firm.capitalize()} has {question.format(**words)}"
    return _item("profit", full, asked, working.format(**words), near_numbers(rng, asked, (10, 20, 100)))


def _journal(rng: random.Random) -> Item:
    event, debit, credit = rng.choice(_EVENTS)
    amount, firm = 10 * rng.randrange(1, 400), rng.choice(_FIRMS)
    told = f"{firm.capitalize()} {event.format(n=amount)}."
    others = [f"debit {first}, credit {second}" for _, first, second in rng.sample(_EVENTS, 4)]
    right = f"debit {debit}, credit {credit}"
    wrong = [f"debit {credit}, credit {debit}", *dict.fromkeys(other for other in others if other != right)]
    return Item(
        kind="journal",
        question=f"{told} Which entry records it?",
        answer=right,
        explanation=f"The {debit} account is debited and the {credit} account is credited with {amount} dollars.",
        statements=(f"{told} The entry: {right}, {amount} dollars.",),
        wrong=tuple(dict.fromkeys(wrong))[:3],
    )


def _ratio(rng: random.Random) -> Item:
    percent = rng.choice(_RATES)
    whole = 100 * rng.randrange(1, 21)
    part = whole * percent // 100
    question, answer, working = rng.choice(
        (
            (
                "Revenue is {w} and profit is {p} dollars. What is the margin in percent?",
                percent,
                "{p} / {w} = {r}%.",
            ),
            (
                "Debt is {p} and assets are {w} dollars. What is the debt ratio in percent?",
                percent,
                "{p} / {w} = {r}%.",
            ),
            ("A price of {w} dollars is cut by {r}%. How large is the cut?", part, "{r}% of {w} is {p}."),
            ("A tax of {r}% falls on {w} dollars. How much tax is due?", part, "{r}% of {w} is {p}."),
        )
    )
    words = {"w": whole, "p": part, "r": percent}
    # Wrong answers are what other rates of the list would give, so that none stands out by its digits.
    shifts = [(int(near) - answer) // 5 for near in near_numbers(rng, answer, (5, 10, 15))]
    rates = [_RATES[(_RATES.index(percent) + shift) % len(_RATES)] for shift in shifts]
    wrong = tuple(str(rate if question.endswith("percent?") else whole * rate // 100) for rate in rates)
    done = working.format(**words)
    return Item("ratio", question.format(**words), str(answer), done, (_as_sentence(done),), wrong)


def _break_even(rng: random.Random) -> Item:
    units, gain, cost = rng.randrange(2, 41), rng.randrange(2, 11), rng.randrange(1, 21)
    fixed = units * gain
    question = (
        f"Fixed costs are {fixed} dollars. One piece costs {cost} and sells for {cost + gain} dollars. "
        "How many pieces break even?"
    )
    working = f"each piece brings {cost + gain} - {cost} = {gain}; {fixed} / {gain} = {units}."
    return _item("break-even", question, units, working, near_numbers(rng, units, (1, 2, 5)))


def _term_item(sense: Sense, rng: random.Random) -> Item:
    return Item(
        kind="term",
        question=some(rng, ("Which term means: {g}?", "What do we call {g}?"), g=sense.gloss),
        answer=sense.word,
        explanation=f"The {sense.part_of_speech} '{sense.word}' has this meaning.",
    )


def _term_passages(sense: Sense) -> tuple[str, ...]:
    synonyms = ", ".join(sense.synonyms) or "none listed"
    return (
        f"{sense.word} ({sense.part_of_speech}): {sense.gloss}.",
        f"{sense.word} is defined as {sense.gloss}. It is a kind of {sense.hypernym or 'possession'}.",
        f"{sense.word}: {sense.gloss}. Other words: {synonyms}. " + " ".join(sense.examples),
    )


_MAKERS: tuple[tuple[Callable[[random.Random], Item], int], ...] = (
    (_balance, 3),
    (_interest, 3),
    (_profit, 3),
    (_journal, 3),
    (_ratio, 2),
    (_break_even, 2),
)
