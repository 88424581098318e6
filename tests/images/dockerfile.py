"""A Dockerfile and its .dockerignore as data: stages, their steps, and which files a build is given."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]


@dataclass
class Stage:
    """One `FROM` and what follows it; `base` is another stage, an image with its tag, or `scratch`."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def of(self, keyword):
        """Return what all its steps of one kind say."""
        return [text for kind, text in self.steps if kind == keyword]

    @property
    def copies(self):
        """Return (stage or None for the build's own files, sources, destination) of each COPY."""
        found = []
        for text in self.of("COPY"):
            words = text.split()
            options = dict(word.lstrip("-").split("=") for word in words if word.startswith("--"))
            *sources, destination = (word for word in words if not word.startswith("--"))
            found.append((options.get("from"), sources, destination))
        return found


def read_stages(args=None, text=None):
    """Return name -> stage, in the order of the file.

    Args:
        args: of the build, in place of the defaults.
        text: the Dockerfile's; this project's own if not given.
    """
    lines = (text or (ROOT / "Dockerfile").read_text()).splitlines()
    joined = "\n".join(line for line in lines if not line.lstrip().startswith("#")).replace("\\\n", " ")
    stages, known = {}, {}
    for line in filter(None, map(str.strip, joined.splitlines())):
        keyword, _, said = line.partition(" ")
        said = said.strip()
        if keyword == "FROM":
            base, _, name = said.partition(" AS ")
            base = re.sub(r"\$\{(\w+)\}", lambda found: known[found[1]], base)
            current = stages[name] = Stage(name, base)
        elif keyword == "ARG":
            name, _, default = said.partition("=")
            known[name] = (args or {}).get(name, default)
            if stages:
                current.steps.append(("ARG", f"{name}={known[name]}"))
        else:
            current.steps.append((keyword, said))
    return stages


def chain(stages, name):
    """Return a stage and those it is built on, the first one first."""
    stage = stages[name]
    return [*(chain(stages, stage.base) if stage.base in stages else []), stage]


def last(stages, name, keyword):
    """Return what holds in the end: a list if it is written as one."""
    said = [text for stage in chain(stages, name) for text in stage.of(keyword)][-1]
    return json.loads(said) if said.startswith("[") else said


def read_patterns():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(path, patterns):
    """Whether a build is not given a file: the last pattern that fits it, or a folder it is in, decides."""
    path, ignored = PurePosixPath(path), False
    for pattern in patterns:
        found = re.compile(_as_regex(pattern.removeprefix("!")))
        if any(found.fullmatch(str(place)) for place in (path, *path.parents)):
            ignored = not pattern.startswith("!")
    return ignored


def _as_regex(pattern):
    pieces = re.split(r"(\*\*/|\*)", pattern)
    return "".join({"**/": "(.*/)?", "*": "[^/]*"}.get(piece) or re.escape(piece) for piece in pieces)
