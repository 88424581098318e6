"""The workflows are whole: jobs that exist, scripts that parse, commands with options that there are."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from moe_compress.compress_commands import compress

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


def read(path):
    content = yaml.safe_load(path.read_text())
    return {("on" if key is True else key): value for key, value in content.items()}  # YAML 1.1 reads `on` as true


def scripts(path):
    steps = [step for job in read(path)["jobs"].values() for step in job.get("steps", [])]
    return [step["run"] for step in steps if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_jobs_are_whole(path):
    workflow = read(path)
    assert {"name", "on", "jobs", "permissions"} <= set(workflow)
    for job in workflow["jobs"].values():
        assert ("uses" in job) != ("runs-on" in job and "timeout-minutes" in job and bool(job["steps"]))
        needs = job.get("needs", [])
        assert ({needs} if isinstance(needs, str) else set(needs)) <= set(workflow["jobs"])
        assert all(("uses" in step) != ("run" in step) for step in job.get("steps", []))
        if "uses" in job:
            called = read(ROOT / job["uses"])
            declared = called["on"]["workflow_call"]["inputs"]
            assert set(job["with"]) <= set(declared)
            assert {name for name, given in declared.items() if given["required"]} <= set(job["with"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_scripts_parse_and_hold_no_expression(path):
    for script in scripts(path):
        subprocess.run(["bash", "-n", "-c", script], check=True)
        assert "${{" not in script  # what an event says must not become code


def test_the_recompression_has_what_it_must_have():
    workflow, domain = read(FOLDER / "recompress.yml"), read(FOLDER / "recompress-domain.yml")
    assert {"schedule", "workflow_dispatch", "repository_dispatch"} <= set(workflow["on"])
    (job,) = workflow["jobs"].values()
    assert "matrix.domain" in job["concurrency"]["group"] and job["concurrency"]["cancel-in-progress"] is False
    promote = domain["jobs"]["promote"]
    assert promote["environment"] == "champion" and promote["needs"] == ["check", "run"]
    assert promote["env"]["VERSION"].strip("${} ") in promote["if"]
    assert "needed == 'true'" in domain["jobs"]["run"]["if"] and domain["defaults"]["run"]["shell"] == "bash"


def test_jobs_on_a_disk_that_lasts_leave_what_is_on_it():
    lasting = [job for job in read(FOLDER / "recompress-domain.yml")["jobs"].values() if "vars." in job["runs-on"]]
    assert len(lasting) == 2
    for job in lasting:
        (checkout,) = (step for step in job["steps"] if step.get("uses", "").startswith("actions/checkout@"))
        assert checkout.get("with", {}).get("clean") is False


def test_the_relay_sends_the_event_that_the_workflow_waits_for():
    (event,) = read(FOLDER / "recompress.yml")["on"]["repository_dispatch"]["types"]
    assert f'"event_type": "{event}"' in (ROOT / "examples" / "mlflow_relay.py").read_text()


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / "scripts" / "recompress"], ids=lambda path: path.name)
def test_commands_have_the_options_they_are_given(path):
    lines = re.findall(r"(?:bin/kedro|\"\$kedro\") compress ([^|\n;]*)", path.read_text())
    assert lines or not path.name.startswith("recompress-")
    for line in lines:
        line = re.sub(r"\$\{base:\+\"\$base\"\}", "--base=x", line.partition(" || ")[0])
        name, *words = shlex.split(line)
        compress.commands[name].make_context(name, words)


@pytest.mark.parametrize(
    ("check", "run", "version", "code", "typed"),
    [
        (0, 0, None, 0, ["check", "check --json"]),  # the champion already, or rolled back
        (0, 0, "2", 0, ["check", "check --json", "promote --version 2"]),  # left by an earlier night
        (10, 0, "2", 0, ["check", "run", "check --json", "promote --version 2"]),
        (10, 1, "2", 1, ["check", "run"]),
        (1, 0, "2", 1, ["check"]),
    ],
)
def test_the_script_for_any_ci(tmp_path, check, run, version, code, typed):
    kedro, found = tmp_path / "kedro", tmp_path / "found.json"
    found.write_text(json.dumps({"version": "1", "to_promote": version, "notes": []}, indent=1))
    kedro.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/typed\n'
        f'case "$2 $4" in "check --json") cat {found};; check*) exit {check};; run*) exit {run};; esac\n'
    )
    kedro.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "KEDRO": str(kedro), "PROMOTE": "yes", "BASE": "models:/base@champion"}
    done = subprocess.run([ROOT / "scripts" / "recompress", "medical", "math"], env=environment, check=False)
    assert done.returncode == code
    lines = (tmp_path / "typed").read_text().splitlines()
    asked = [
        f"compress {' '.join([*word.split()[:1], domain, *word.split()[1:]])}"
        for domain in ("medical", "math")
        for word in typed
    ]
    assert [line.startswith(begins) for line, begins in zip(lines, asked, strict=True)] == [True] * len(asked)
    assert all("--base=models:/base@champion" in line for line in lines if line.split()[1] != "promote")


def test_the_script_without_a_domain_tells_how_it_is_used():
    done = subprocess.run([ROOT / "scripts" / "recompress"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage" in done.stderr
