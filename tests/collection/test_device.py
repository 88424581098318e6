"""Collecting on a device with memory of its own: nothing mixes it with the host's, and the host hardly waits."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

FAMILIES = (
    "qwen3_moe",
    "deepseek_v3",
    "deepseek_v4",
    "gemma4_text",
    "gpt_oss",
    "granitemoe",
    "minimax",
    "nemotron_h",
)


@pytest.fixture(scope="module")
def found():
    """Return family -> how collecting on the device went, in a process of its own, which then has that device."""
    command = [sys.executable, "-m", "tests.collection.on_device", *FAMILIES]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    return {each["family"]: each for each in map(json.loads, ran.stdout.splitlines())}


@pytest.mark.parametrize("family", FAMILIES)
def test_gives_what_the_host_gives(found, family):
    assert found[family]["different"] == {"resident": [], "streamed": []}


@pytest.mark.parametrize("what", ["decoding", "elimination"])
def test_does_what_the_host_does(found, what):
    assert found[what]["different"] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_no_wait_for_each_expert(found, family):
    """No place in the code waits more often than once a layer and batch, or for the three tensors of a batch."""
    layers, batches, experts = found[family]["layers"], 3, 8
    most = max(layers, 3) * batches
    assert 0 < max(found[family]["waits"].values()) <= most < layers * experts
