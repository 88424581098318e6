"""Run the Dockerfile's steps without an engine: `python -m tests.images.build cpu FOLDER [NAME=VALUE]...`.

Each stage is a folder that stands for its root: the steps' paths are put below it, COPY links what .dockerignore
lets through, and RUN is bash. The base image is this machine, with its python. Users are not made.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from tests.images.dockerfile import ROOT, chain, is_ignored, last, read_patterns, read_stages

SHIMS = {
    "useradd": "exit 0",
    "groupadd": "exit 0",
    "install": 'for word; do case $word in --owner=*|--group=*) ;; *) set -- "$@" "$word";; esac; shift; done\n'
    'exec /usr/bin/install "$@"',
}
"""What only root may do, and only in a root of its own."""


class Build:
    """A build in a folder; `root` links to the stage that is being built, so that paths in scripts stay right."""

    def __init__(self, folder, args):
        self.folder, self.root = folder, folder / "root"
        self.stages, self.done = read_stages(args), {}
        self.context, shims = folder / "context", folder / "shims"
        shims.mkdir(parents=True)
        for name, text in SHIMS.items():
            (shims / name).write_text(f"#!/bin/bash\n{text}\n")
            (shims / name).chmod(0o755)
        self.path = f"{shims}:{os.environ['PATH']}"
        self.lay_out_context()

    def lay_out_context(self):
        """Copy what a build would be given."""
        patterns = read_patterns()
        for path in (Path(line) for line in self.git("ls-files").splitlines()):
            if not is_ignored(path.as_posix(), patterns):
                (self.context / path).parent.mkdir(parents=True, exist_ok=True)
                (self.context / path).write_bytes((ROOT / path).read_bytes())

    def git(self, *words):
        return subprocess.check_output(["git", "-C", str(ROOT), *words], text=True)

    def here(self, text):
        """Return a text with absolute paths of the image below the root."""
        return re.sub(r"(?<![\w./:])/(?=(opt|build|package|home)\b)", f"{self.root}/", text)

    def make(self, name):
        """Build a stage, after those it needs."""
        if name in self.done:
            return self.done[name]
        stage = self.stages[name]
        needed = [source for source, _, _ in stage.copies if source]
        env, where = self.make(stage.base) if stage.base in self.stages else ({"PATH": self.path}, self.root)
        env = dict(env)
        for other in needed:
            self.make(other)
        place = self.folder / "stages" / name
        place.mkdir(parents=True)
        if stage.base in self.stages:
            self.link(self.folder / "stages" / stage.base, place)
        self.root.unlink(missing_ok=True)
        self.root.symlink_to(place)
        copies = iter(stage.copies)
        for keyword, text in stage.steps:
            print(f"[{name}] {keyword} {text}", flush=True)
            if keyword in ("ENV", "ARG"):
                for pair in shlex.split(self.here(text)):
                    key, _, value = pair.partition("=")
                    env[key] = re.sub(r"\$(\w+)", lambda found, env=env: env[found[1]], value)
            elif keyword == "WORKDIR":
                where = Path(self.here(text))
                where.mkdir(parents=True, exist_ok=True)
            elif keyword == "COPY":
                self.copy(*next(copies), where)
            elif keyword == "RUN":
                kept = {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "HOME", "LANG"))}
                subprocess.run(["bash", "-ec", self.here(text)], cwd=where, env=kept | env, check=True)
        self.done[name] = env, where
        return self.done[name]

    def copy(self, source, names, destination, where):
        start = self.folder / "stages" / source if source else self.context
        end = Path(self.here(destination))
        end = self.root / destination.lstrip("/") if destination.startswith("/") else where / end
        for name in names:
            found = start / name.strip("/")
            is_many = found.is_dir() or not destination.endswith("/")
            self.link(found, end if is_many else end / found.name)

    def link(self, found, end):
        """Put a file or a folder's content at a place, as links, which installers replace and do not write into."""
        end.parent.mkdir(parents=True, exist_ok=True)
        if found.is_dir():
            end.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-al", "--force", f"{found}/.", str(end)], check=True)
        else:
            subprocess.run(["cp", "-l", "--force", str(found), str(end)], check=True)


def main():
    """Build a target, and have it list its pipelines as its own entry point would."""
    target, folder, *given = sys.argv[1:]
    build = Build(Path(folder).resolve(), dict(pair.split("=", 1) for pair in given))
    env, where = build.make(target)
    commands = [last(build.stages, target, "CMD")]
    if target != "mlflow":
        entry = last(build.stages, target, "ENTRYPOINT")
        commands = [[*entry, "registry", "list"], [*entry, *commands[0]]]
    for command in commands:
        print("$", shlex.join(command), flush=True)
        subprocess.run(command, cwd=where, env={"HOME": str(build.folder)} | env, check=True)
    print("stages:", ", ".join(stage.name for stage in chain(build.stages, target)))


if __name__ == "__main__":
    main()
