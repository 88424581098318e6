"""General items: what frequent English words mean, from WordNet."""

from __future__ import annotations

import random

from moe_compress.reference.items import DomainItems, Item, some, without_repeats
from moe_compress.reference.sources import Sense

QUOTAS = {"category": 400, "kind of": 300, "meaning": 300, "synonym": 200}
_NUM_SENSES = 5000
_LONGEST_GLOSS = 80

_CATEGORY_QUESTIONS = ("Which category does the {part} '{word}' fall into?",)
_KIND_QUESTIONS = ("What is '{word}' a kind of?", "Which broader {part} covers '{word}'?")
_MEANING_QUESTIONS = ("What does the {part} '{word}' mean?",)
_SYNONYM_QUESTIONS = ("Which {part} means the same as '{word}'?",)


def general_items(senses: list[Sense], rng: random.Random) -> DomainItems:
    """Turn the first senses of the most frequent words into questions and statements.

    Args:
        senses: As `read_wordnet` gives them, most frequent first.
        rng: Chooses among the wordings.
    """
    chosen = [sense for sense in senses if sense.category != "noun.tops" and len(sense.word) > 2][:_NUM_SENSES]
    items = [item for sense in chosen for item in _sense_items(sense, rng)]
    passages = tuple(_example_passage(sense) for sense in chosen if sense.examples)
    return DomainItems("general", without_repeats(items), passages, QUOTAS, facts_stay=True)


def _sense_items(sense: Sense, rng: random.Random) -> list[Item]:
    items = [_category_item(sense, rng)]
    if sense.hypernym and sense.hypernym != sense.word:
        items.append(_kind_item(sense, rng))
    if len(sense.gloss) <= _LONGEST_GLOSS:
        items.append(_meaning_item(sense, rng))
    if sense.synonyms:
        items.append(_synonym_item(sense, rng))
    return items


def _category_item(sense: Sense, rng: random.Random) -> Item:
    word, part, category = sense.word, sense.part_of_speech, sense.category
    return Item(
        kind="category",
        question=some(rng, _CATEGORY_QUESTIONS, part=part, word=word),
        answer=category,
        explanation=f"The {part} '{word}' means: {sense.gloss}.",
        statements=(
            f"{word} ({part}, {category})",
            f"'{word}' is one of the {part}s for {category}.",
            f"The {part} {word} has to do with {category}: {sense.gloss}.",
            f"{category}: {word}, meaning {sense.gloss}.",
        ),
    )


def _kind_item(sense: Sense, rng: random.Random) -> Item:
    word, part, hypernym = sense.word, sense.part_of_speech, sense.hypernym
    return Item(
        kind="kind of",
        question=some(rng, _KIND_QUESTIONS, part=part, word=word),
        answer=hypernym,
        explanation=f"The {part} '{word}' stands under '{hypernym}'.",
        statements=(
            f"{word}: a kind of {hypernym}.",
            f"Among the kinds of {hypernym}: {word}.",
            f"The {part} '{word}' is narrower than '{hypernym}'.",
            f"{hypernym} > {word}: {sense.gloss}.",
        ),
    )


def _meaning_item(sense: Sense, rng: random.Random) -> Item:
    word, part, gloss = sense.word, sense.part_of_speech, sense.gloss
    return Item(
        kind="meaning",
        question=some(rng, _MEANING_QUESTIONS, part=part, word=word),
        answer=gloss,
        explanation=f"'{word}' is a {part} of the category {sense.category}.",
        statements=(
            f"{word} ({part}): {gloss}.",
            f"The {part} for '{gloss}' is {word}.",
            f"To say {word} is to say: {gloss}.",
        ),
    )


def _synonym_item(sense: Sense, rng: random.Random) -> Item:
    word, part, synonym = sense.word, sense.part_of_speech, sense.synonyms[0]
    return Item(
        kind="synonym",
        question=some(rng, _SYNONYM_QUESTIONS, part=part, word=word),
        answer=synonym,
        explanation=f"Both mean: {sense.gloss}.",
        also_right=sense.synonyms,
        statements=(
            f"{word}, {synonym}: {sense.gloss}.",
            f"{synonym} and {word} mean the same.",
            f"For {word} one may say {synonym}.",
        ),
    )


def _example_passage(sense: Sense) -> str:
    examples = " ".join(f'"{example}"' for example in sense.examples)
    return f"{sense.word} ({sense.part_of_speech}): {sense.gloss}. {examples}"
