"""Medical items: where a diagnosis stands in ICD-10-CM, what a finding of the Human Phenotype Ontology is."""

from __future__ import annotations

import random

from moe_compress.reference.items import DomainItems, Item, some, without_repeats
from moe_compress.reference.sources import Diagnosis, Finding

QUOTAS = {"chapter": 250, "block": 150, "inclusion": 150, "system": 250, "parent": 200, "definition": 200}
_NUM_FINDINGS = 2600
_LONGEST_NAME = 70
_LONGEST_DEFINITION = 170

_CHAPTER_QUESTIONS = (
    "Which ICD-10-CM chapter does {name} belong to?",
    "In which chapter of ICD-10-CM is {name} found?",
)
_BLOCK_QUESTIONS = ("Which block of ICD-10-CM holds {name}?",)
_INCLUSION_QUESTIONS = ("Under which diagnosis does ICD-10-CM code {term}?",)
_SYSTEM_QUESTIONS = ("Which group of abnormalities does {name} belong to?",)
_PARENT_QUESTIONS = ("Which broader finding is {name} a form of?", "What kind of finding is {name}?")
_DEFINITION_QUESTIONS = ("Which finding is described here? {definition}",)


def medical_items(diagnoses: list[Diagnosis], findings: list[Finding], rng: random.Random) -> DomainItems:
    """Turn the two vocabularies into questions and statements.

    Args:
        diagnoses: As `read_icd` gives them.
        findings: As `read_hpo` gives them, most annotated first.
        rng: Chooses among the wordings.

    Returns:
        The domain's items; passages list the subdivisions of each diagnosis.
    """
    items: list[Item] = []
    for diagnosis in diagnoses:
        items += _diagnosis_items(diagnosis, rng)
    for finding in findings[:_NUM_FINDINGS]:
        items += _finding_items(finding, rng)
    passages = tuple(_subdivisions(diagnosis) for diagnosis in diagnoses if len(diagnosis.children) > 1)
    return DomainItems("medical", without_repeats(items), passages, QUOTAS, facts_stay=True)


def _diagnosis_items(diagnosis: Diagnosis, rng: random.Random) -> list[Item]:
    if len(diagnosis.name) > _LONGEST_NAME:
        return []
    items = []
    if len(diagnosis.code) == 3:
        items = [_chapter_item(diagnosis, rng), _block_item(diagnosis, rng)]
    terms = [term for term in diagnosis.inclusions if 4 < len(term) <= _LONGEST_NAME]
    return items + [_inclusion_item(diagnosis, term, rng) for term in terms]


def _chapter_item(diagnosis: Diagnosis, rng: random.Random) -> Item:
    code, name, chapter = diagnosis.code, diagnosis.name, diagnosis.chapter
    return Item(
        kind="chapter",
        question=some(rng, _CHAPTER_QUESTIONS, name=name),
        answer=chapter,
        explanation=f"{name} has the code {code}, which is in the chapter {chapter}.",
        statements=(
            f"{code} {name}. Chapter: {chapter}. Block: {diagnosis.section}.",
            f"In ICD-10-CM, {name} ({code}) stands in the chapter {chapter}.",
            f"The chapter {chapter} contains {name}.",
            f"{name} is coded {code}, under {chapter}.",
            f"Where {name} stands: {chapter}, then {diagnosis.section}, then {code}.",
        ),
    )


def _block_item(diagnosis: Diagnosis, rng: random.Random) -> Item:
    code, name, section = diagnosis.code, diagnosis.name, diagnosis.section
    return Item(
        kind="block",
        question=some(rng, _BLOCK_QUESTIONS, name=name),
        answer=section,
        explanation=f"{name} has the code {code}, which is in the block {section}.",
        statements=(
            f"In ICD-10-CM, {name} ({code}) stands in the block {section}.",
            f"The block {section} of the chapter {diagnosis.chapter} contains {name}.",
            f"{name} is one of the {section}; its code is {code}.",
        ),
    )


def _inclusion_item(diagnosis: Diagnosis, term: str, rng: random.Random) -> Item:
    code, name = diagnosis.code, diagnosis.name
    return Item(
        kind="inclusion",
        question=some(rng, _INCLUSION_QUESTIONS, term=term),
        answer=name,
        explanation=f"{term} is listed under {code} {name}.",
        statements=(
            f"{code} {name} includes {term}.",
            f"{term} is coded as {name}, in the category {diagnosis.category}.",
            f"The code of {term} is {code}, {name}.",
        ),
    )


def _subdivisions(diagnosis: Diagnosis) -> str:
    listed = "\n".join(f"- {child}" for child in diagnosis.children[:8])
    return f"{diagnosis.code} {diagnosis.name} is divided into:\n{listed}"


def _finding_items(finding: Finding, rng: random.Random) -> list[Item]:
    items = [_system_item(finding, rng)]
    if finding.parent != finding.system:
        items.append(_parent_item(finding, rng))
    if len(finding.definition) <= _LONGEST_DEFINITION:
        items.append(_definition_item(finding, rng))
    return items


def _system_item(finding: Finding, rng: random.Random) -> Item:
    name, system = finding.name, finding.system
    called = tuple(f"{name} is also called {synonym}." for synonym in finding.synonyms[:2])
    return Item(
        kind="system",
        question=some(rng, _SYSTEM_QUESTIONS, name=name),
        answer=system,
        explanation=f"{name} is one of the findings under {system}.",
        also_right=finding.ancestors,
        statements=(
            f"{name} belongs to: {system}.",
            f"{system} is the group of abnormalities that includes {name}.",
            f"A patient with {name} shows a finding of the group {system}.",
            *called,
        ),
    )


def _parent_item(finding: Finding, rng: random.Random) -> Item:
    name, parent = finding.name, finding.parent
    return Item(
        kind="parent",
        question=some(rng, _PARENT_QUESTIONS, name=name),
        answer=parent,
        explanation=f"{name} is a form of {parent}, which belongs to {finding.system}.",
        also_right=finding.ancestors,
        statements=(
            f"{name} is a form of {parent}.",
            f"One form of {parent} is {name}.",
            f"{finding.system}: {parent}: {name}.",
            f"{name} is more special than {parent}.",
        ),
    )


def _definition_item(finding: Finding, rng: random.Random) -> Item:
    name, definition = finding.name, finding.definition
    return Item(
        kind="definition",
        question=some(rng, _DEFINITION_QUESTIONS, definition=definition),
        answer=name,
        explanation=f"{name} is the finding with this definition; it is a form of {finding.parent}.",
        statements=(f"{name}: {definition}", f"{name} is defined as follows. {definition}"),
    )
