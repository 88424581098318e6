"""A few of the kills of kills.py: in writing, after registering, and runs that are asked to stop."""

from __future__ import annotations

import os
import random
import signal

import mlflow
from tests.operations.kills import NAME, Killer, kill_at_stages

from moe_compress.registry.versions import list_aliases


def test_a_killed_run_leaves_the_registry_whole_and_goes_on(operator):
    mlflow.set_tracking_uri(f"sqlite:///{operator.project.folder}/mlflow.db")
    killer = Killer(operator.project.folder, random.Random(0))
    kill_at_stages(killer, ["check_compatibility"])
    killer.kill_before("finish_report")
    assert killer.kills == 2
    assert [reason["what"] for reason in operator.ask("check", "medical", code=10)["reasons"]] == ["unfinished"]
    operator.type("run", "medical")
    killer.check("the end")
    assert operator.ask("check", "medical")["needed"] is False
    assert list_aliases(NAME) == {"candidate": "1"}
    assert statuses() == ["FINISHED", "KILLED", "KILLED"]


def test_a_run_that_is_asked_to_stop_is_tracked_as_killed(operator):
    mlflow.set_tracking_uri(f"sqlite:///{operator.project.folder}/mlflow.db")
    killer = Killer(operator.project.folder, random.Random(0))
    for asked, code in ((signal.SIGINT, 1), (signal.SIGTERM, 128 + signal.SIGTERM)):
        with killer.start("run", "medical") as process:
            for line in process.stdout:
                if "Completed node: medical.check_request" in line:
                    os.kill(process.pid, asked)
        assert process.returncode == code
    assert statuses() == ["KILLED", "KILLED"]


def statuses():
    """Return how the runs stand, the newest first."""
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    return [run.info.status for run in runs]
