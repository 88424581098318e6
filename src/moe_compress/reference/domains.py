"""Read the sources once and build every domain's items."""

from __future__ import annotations

import random
from pathlib import Path

from moe_compress.reference import sources
from moe_compress.reference.code import code_items
from moe_compress.reference.finance import finance_items
from moe_compress.reference.general import general_items
from moe_compress.reference.items import DomainItems
from moe_compress.reference.math import math_items
from moe_compress.reference.medical import medical_items

DOMAINS = ("medical", "code", "math", "finance", "general")


def build_domains(wordnet: Path, seed: int) -> list[DomainItems]:
    """Return the items of every domain, in the order of `DOMAINS`.

    Args:
        wordnet: Folder of WordNet's database files.
        seed: Same seed and same source versions give the same items.
    """
    senses = sources.read_wordnet(wordnet)
    draw = {domain: random.Random(f"{seed} items {domain}") for domain in DOMAINS}
    return [
        medical_items(sources.read_icd(), sources.read_hpo(), draw["medical"]),
        code_items(sources.read_standard_library(), draw["code"]),
        math_items(draw["math"]),
        finance_items(senses, draw["finance"]),
        general_items(senses, draw["general"]),
    ]
