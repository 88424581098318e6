"""Kill runs at every stage and promotions at any moment: the registry is whole after each, and the story goes on.

`python -m tests.operations.kills --kills 20` does it many times; a test does it a few times.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow

import moe_compress
from moe_compress.operations.verify import verify_version
from moe_compress.registry.versions import list_aliases, list_versions

NAME = "moe-medical"
STAGES = (
    *("check_request", "validate_demonstrations", "record_lineage", "collect_statistics", "describe_background"),
    *("measure_agreement", "plan_experts", "check_compatibility", "baseline.evaluate", "rewrite_checkpoint"),
    *(
        "candidate.evaluate",
        "probe_candidate",
        "time_models",
        "compare_models",
        "measure_candidate",
        "decide_gates",
        "draft_report",
    ),
    "release_candidate",
)
NEEDED_TAGS = {"run_key", "base_weights_digest", "plan_digest", "gates", "gates_passed", "checksums_digest"}


@dataclass
class Killer:
    """A project whose commands are killed.

    Attributes:
        folder: the project.
        chance: draws the moments.
        kills: how many processes were killed in the middle.
    """

    folder: Path
    chance: random.Random
    kills: int = 0

    def start(self, *words):
        return self.start_python("-m", "kedro", "compress", *words)

    def start_python(self, *words):
        sources = Path(moe_compress.__file__).parents[1]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{sources}{os.pathsep}{sources.parent}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db",
            "COLUMNS": "400",
        }
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background job ignores it, and so would the command.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def kill_after(self, stages):
        """Kill a run up to a third of a second after it has finished one of these stages, and return which.

        None if it ended well without them: an earlier run had done them in the moment before it was killed.
        """
        said = []
        with self.start("run", "medical") as process:
            for line in process.stdout:
                said.append(line)
                found = re.search(r"Completed node: medical\.(\S+)", line)
                if found and found[1] in stages:
                    self.kill(process, self.chance.uniform(0, 0.3))
                    break
            else:
                assert process.wait() == 0, "".join(said[-40:])
                found = None
        stage = found and found[1]
        self.check(stage or "the end")
        return stage

    def kill_before(self, stage):
        """Kill a run as soon as this stage begins."""
        with self.start_python("-m", "tests.operations.killed_run", stage, "medical") as process:
            said = process.stdout.read()
        assert process.returncode == -signal.SIGKILL, said
        self.count()
        self.check(stage)

    def kill_within(self, seconds, *words):
        """Start a command and kill it at any moment of so many seconds, if it lives as long."""
        with self.start(*words) as process:
            self.kill(process, self.chance.uniform(0, seconds))
            process.stdout.read()
        self.check(" ".join(words))

    def kill(self, process, delay):
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            self.count()

    def count(self):
        self.kills += 1
        print(f"kill {self.kills}", flush=True)

    def finish(self, *words, code=0):
        with self.start(*words) as process:
            said = process.stdout.read()
        assert process.returncode == code, said
        return said

    def check(self, moment):
        """Every version that is there is whole, and every alias leads to one."""
        versions = list_versions(NAME)
        for version in versions:
            missing = NEEDED_TAGS - version.tags.keys()
            assert not missing, f"after {moment}: {version.uri} lacks {missing}"
            assert verify_version(version)["intact"], f"after {moment}: {version.uri} is damaged"
        keys = [version.tags["run_key"] for version in versions]
        assert len(keys) == len(set(keys)), f"after {moment}: the same inputs gave two versions"
        assert set(list_aliases(NAME).values()) <= {version.version for version in versions}


def kill_at_stages(killer, stages):
    """Start a run again and again, each time killed at another stage; nothing is promoted meanwhile."""
    left = list(stages)
    while left and (stage := killer.kill_after(left)):
        left.remove(stage)
    assert "champion" not in list_aliases(NAME)


def tell_story(killer, stages, later, train):
    """Make and promote a version, then another from new base weights, with kills all along the way.

    Args:
        killer: the project.
        stages: after which of the first run's stages it is killed.
        later: how many promotions, and how many runs on new weights, are killed at any moment.
        train: gives the base model new weights.
    """
    kill_at_stages(killer, stages)
    killer.finish("run", "medical")
    killer.finish("check", "medical")
    for _ in range(later):
        killer.kill_within(6, "promote", "medical")
    killer.finish("promote", "medical")
    assert list_aliases(NAME) == {"candidate": "1", "champion": "1"}
    train()
    for _ in range(later):
        killer.kill_within(15, "run", "medical")
        assert list_aliases(NAME)["champion"] == "1"
    killer.finish("run", "medical")
    killer.finish("check", "medical")
    killer.finish("promote", "medical")
    assert list_aliases(NAME) == {"candidate": "2", "champion": "2", "previous": "1"}


def main():
    """Kill as often as asked in a project of its own."""
    from tests.operations.conftest import train_on
    from tests.pipelines.conftest import DOMAINS, copy_project, make_domain, make_model

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        inputs, folder = Path(place) / "inputs", Path(place) / "project"
        make_model(inputs / "model")
        for name in DOMAINS:
            make_domain(inputs / "domains", name)
        folder.mkdir()
        copy_project(inputs, folder)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        killer = Killer(folder, random.Random(given.seed))
        later = 4 + max(0, given.kills - len(STAGES)) // 2  # some end before their moment comes
        tell_story(killer, STAGES[: given.kills], later, lambda: train_on(folder / "data/01_raw/model"))
    print(f"{killer.kills} kills; after each the registry was whole, and the story ended as it must")


if __name__ == "__main__":
    main()
