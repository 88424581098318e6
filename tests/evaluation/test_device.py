"""Measuring on a device with memory of its own says what measuring on the host says."""

import json
import subprocess
import sys


def test_measures_what_the_host_does():
    command = [sys.executable, "-m", "tests.evaluation.on_device"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert {each["family"] for each in found} == {"qwen3_moe", "deepseek_v3"}
    assert not any(each["different"] for each in found), found
