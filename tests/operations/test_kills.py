"""A few of the kills of kills.py: while the checkpoint is written, and once the version is registered."""

from __future__ import annotations

import random

import mlflow
from tests.operations.kills import NAME, Killer, kill_at_stages

from moe_compress.registry.versions import list_aliases


def test_a_killed_run_leaves_the_registry_whole_and_goes_on(operator):
    mlflow.set_tracking_uri(f"sqlite:///{operator.project.folder}/mlflow.db")
    killer = Killer(operator.project.folder, random.Random(0))
    kill_at_stages(killer, ["check_compatibility", "release_candidate"])
    assert killer.kills == 2
    assert operator.ask("check", "medical", code=10)["reasons"]
    operator.type("run", "medical")
    killer.check("the end")
    assert operator.ask("check", "medical")["needed"] is False
    assert list_aliases(NAME) == {"candidate": "1"}
