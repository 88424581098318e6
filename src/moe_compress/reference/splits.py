"""Split a domain's items into training text, demonstrations, calibration, held-out text and benchmark."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from moe_compress.errors import DataError
from moe_compress.reference.items import NUM_CHOICES, DomainItems, Item, text_key

Row = dict[str, object]
_SLIPS_EVERY = 3
_FEW_ANSWERS = 300
_NUM_DRAWN = 200
_NUM_CANDIDATES = 24


@dataclass(frozen=True)
class SplitSizes:
    """How many rows each small split of a domain gets, about; the benchmark follows the domain's quotas."""

    demonstrations: int
    calibration: int
    heldout: int


@dataclass(frozen=True)
class DomainSplits:
    """One domain's data, as rows ready for JSON lines; `training` is plain texts."""

    domain: str
    training: tuple[str, ...]
    demonstrations: tuple[Row, ...]
    calibration: tuple[Row, ...]
    heldout: tuple[Row, ...]
    benchmark: tuple[Row, ...]


def digest(text: str) -> str:
    """Return the digest of a text in lower case, with signs and blanks collapsed."""
    return hashlib.sha256(text_key(text).encode()).hexdigest()


def split_domain(domain: DomainItems, sizes: SplitSizes, seed: int) -> DomainSplits:
    """Deal a domain's items out.

    The fact behind a benchmark question or a demonstration may stay in the training text, in other words,
    if the domain says so; what calibration and held-out text say never does.

    Raises:
        DataError: A kind has too few questions for its quota.
    """
    rng = random.Random(f"{seed} {domain.domain}")
    dealt = _deal(domain, sizes, rng)
    calibration = [_calibration_text(item) for item in dealt["calibration"]]
    heldout = [_heldout_text(item) for item in dealt["heldout"]]
    reserved = {text_key(piece) for item in (*dealt["calibration"], *dealt["heldout"]) for piece in item.statements}
    training = [piece for piece in _training_pieces(domain, dealt, rng) if text_key(piece) not in reserved]
    name = domain.domain
    splits = DomainSplits(
        domain=name,
        training=tuple(training),
        demonstrations=tuple(_demonstration(item, name, n) for n, item in enumerate(dealt["demonstrations"])),
        calibration=tuple({"id": f"{name}-c{n:04d}", "text": text} for n, text in enumerate(calibration)),
        heldout=tuple({"id": f"{name}-h{n:04d}", "text": text} for n, text in enumerate(heldout)),
        benchmark=_benchmark(domain, dealt["benchmark"], rng),
    )
    check_disjoint(split_digests(splits), name)
    return splits


def _deal(domain: DomainItems, sizes: SplitSizes, rng: random.Random) -> dict[str, list[Item]]:
    dealt: dict[str, list[Item]] = {name: [] for name in ("benchmark", "calibration", "heldout", "demonstrations")}
    dealt["training"] = []
    total = sum(domain.quotas.values())
    for kind, quota in domain.quotas.items():
        pool = [item for item in domain.items if item.kind == kind]
        rng.shuffle(pool)
        for split in ("benchmark", "calibration", "heldout", "demonstrations"):
            wanted = quota if split == "benchmark" else round(getattr(sizes, split) * quota / total)
            if len(pool) < 2 * wanted:
                raise DataError(
                    f"{domain.domain} has {len(pool)} questions of kind {kind!r} left for {split}, which needs "
                    f"{2 * wanted}; lower the kind's quota or make more items"
                )
            dealt[split] += pool[:wanted]
            del pool[:wanted]
        dealt["training"] += pool
    return dealt


def _training_pieces(domain: DomainItems, dealt: Mapping[str, list[Item]], rng: random.Random) -> list[str]:
    pieces = list(domain.passages)
    for item in dealt["training"]:
        pieces += [*item.statements, rng.choice((item.short_form, item.short_form, item.long_form))]
    if domain.facts_stay:
        pieces += [
            piece for split in ("benchmark", "demonstrations") for item in dealt[split] for piece in item.statements
        ]
    unique = {text_key(piece): piece for piece in pieces}
    pieces = list(unique.values())
    rng.shuffle(pieces)
    return pieces


def _calibration_text(item: Item) -> str:
    return "\n".join((*item.statements[:1], item.long_form))


def _heldout_text(item: Item) -> str:
    return "\n".join(item.statements[:2]) or item.long_form


def _demonstration(item: Item, domain: str, number: int) -> Row:
    identity = f"{domain}-d{number:04d}"
    return {"id": identity, "question": item.question, "answer": f"{item.answer}\n{item.explanation}"}


def _benchmark(domain: DomainItems, items: list[Item], rng: random.Random) -> tuple[Row, ...]:
    answers = {kind: [item.answer for item in domain.items if item.kind == kind] for kind in domain.quotas}
    shuffled = list(items)
    rng.shuffle(shuffled)
    rows = []
    for number, item in enumerate(shuffled):
        slips = item.slips if number % _SLIPS_EVERY == 0 else ()
        choices = list(item.wrong or slips or _other_answers(item, answers[item.kind], rng))
        choices.insert(number % NUM_CHOICES, item.answer)
        rows.append(
            {
                "id": f"{domain.domain}-b{number:04d}",
                "kind": item.kind,
                "question": item.question,
                "choices": choices,
                "answer": number % NUM_CHOICES,
            }
        )
    return tuple(rows)


def _other_answers(item: Item, answers: list[str], rng: random.Random) -> list[str]:
    """Draw answers to other questions of the kind, so that no choice is likelier before the question is read.

    Where a few answers serve many questions, frequent answers must be as frequent among the wrong choices; where
    nearly every question has its own, those nearest in length are taken.
    """
    right = {text_key(text) for text in (item.answer, *item.also_right)}
    few = len(set(answers)) <= _FEW_ANSWERS
    candidates: dict[str, str] = {}
    for answer in rng.choices(answers, k=_NUM_DRAWN):
        if text_key(answer) not in right:
            candidates.setdefault(text_key(answer), answer)
    drawn = list(candidates.values())
    if not few:
        drawn = sorted(drawn[:_NUM_CANDIDATES], key=lambda text: abs(len(text) - len(item.answer)))
    chosen = drawn[: NUM_CHOICES - 1]
    rng.shuffle(chosen)
    return chosen


def split_digests(splits: DomainSplits) -> dict[str, set[str]]:
    """Return the digests of every split's texts; questions count without their answers too."""
    return {
        "training": _digests(splits.training),
        "demonstrations": _digests(str(row["question"]) for row in splits.demonstrations),
        "calibration": _digests(str(row["text"]) for row in splits.calibration),
        "heldout": _digests(str(row["text"]) for row in splits.heldout),
        "benchmark": _digests(str(row["question"]) for row in splits.benchmark),
    }


def _digests(texts: Iterable[str]) -> set[str]:
    return {digest(part) for text in texts for part in (text, _question_of(text)) if text_key(part)}


def _question_of(text: str) -> str:
    _, label, rest = text.partition("Question: ")
    return rest.split("\nAnswer:", 1)[0] if label else text


def check_disjoint(digests: Mapping[str, set[str]], place: str) -> None:
    """Refuse splits that share a text.

    Raises:
        DataError: Two splits hold the same text.
    """
    for first, second in combinations(digests, 2):
        shared = digests[first] & digests[second]
        if shared:
            raise DataError(
                f"{place}: {len(shared)} texts are in both {first} and {second}, such as digest {min(shared)}; "
                "rebuild the splits"
            )
