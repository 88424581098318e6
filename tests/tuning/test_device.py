"""Distilling on a device with memory of its own: both models are there, and their loss is the host's."""

import json
import subprocess
import sys

import pytest


def test_both_models_are_on_the_device(checkpoint):
    command = [sys.executable, "-m", "tests.tuning.on_device", str(checkpoint())]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    host, device = map(json.loads, ran.stdout.splitlines())
    assert device["device"] == "privateuseone:0"
    assert device["loss"] == pytest.approx(host["loss"], rel=1e-6)
