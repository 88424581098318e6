"""Pack encoded texts into training sequences of one length, each from one domain."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_NUM_OPEN = 32


@dataclass(frozen=True)
class PackedSequences:
    """Training sequences.

    Attributes:
        tokens: `[N, S]` int32; the rest of a sequence that nothing fitted into is `padding`.
        domains: `[N]` int64, index of each sequence's domain.
        padding: The token that fills up.
    """

    tokens: NDArray[np.int32]
    domains: NDArray[np.int64]
    padding: int


def pack(
    documents: Sequence[Sequence[Sequence[int]]], length: int, end: int, padding: int, seed: int
) -> PackedSequences:
    """Pack each domain's documents, then shuffle the sequences of all domains.

    Args:
        documents: Per domain, the token ids of each text.
        length: Tokens per sequence.
        end: Token put after each text.
        padding: Token that fills up.
        seed: Order of texts and sequences.
    """
    rng = random.Random(seed)
    sequences: list[tuple[int, list[int]]] = []
    for domain, texts in enumerate(documents):
        pieces = [piece for text in texts for piece in _cut([*text, end], length)]
        rng.shuffle(pieces)
        sequences += [(domain, sequence) for sequence in _fill(pieces, length)]
    rng.shuffle(sequences)
    tokens = np.full((len(sequences), length), padding, dtype=np.int32)
    for row, (_, sequence) in enumerate(sequences):
        tokens[row, : len(sequence)] = sequence
    return PackedSequences(tokens, np.array([domain for domain, _ in sequences], dtype=np.int64), padding)


def _cut(text: list[int], length: int) -> list[list[int]]:
    return [text[start : start + length] for start in range(0, len(text), length)]


def _fill(pieces: list[list[int]], length: int) -> list[list[int]]:
    """Put each piece into the first open sequence with room; the fullest is closed when too many are open."""
    done: list[list[int]] = []
    opened: list[list[int]] = []
    for piece in pieces:
        place = next((sequence for sequence in opened if len(sequence) + len(piece) <= length), None)
        if place is None:
            place = []
            opened.append(place)
        place += piece
        if len(place) == length or len(opened) > _NUM_OPEN:
            fullest = max(opened, key=len)
            opened.remove(fullest)
            done.append(fullest)
    return done + opened
