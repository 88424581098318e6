"""The Dockerfile without an engine: what is pinned, who runs, what is copied, and that its commands parse."""

from __future__ import annotations

import re
import subprocess

import pytest
from tests.images.dockerfile import ROOT, chain, is_ignored, last, read_patterns, read_stages

STAGES = read_stages()
TARGETS = ("cpu", "cuda", "mlflow")


def test_base_images_have_exact_tags():
    bases = {stage.base for stage in STAGES.values()} - set(STAGES) - {"scratch"}
    assert bases and all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", base) for base in bases)
    assert list(STAGES)[-1] == "cpu"  # what a build without --target makes


def test_stages_are_built_on_and_copy_from_those_before_them():
    names = list(STAGES)
    for place, (name, stage) in enumerate(STAGES.items()):
        used = [source for source, _, _ in stage.copies if source]
        assert set(used) <= set(names[:place]), name
        assert stage.base not in STAGES or stage.base in names[:place]


@pytest.mark.parametrize("target", TARGETS)
def test_nobody_is_root(target):
    assert re.fullmatch(r"[1-9]\d+(:[1-9]\d+)?", last(STAGES, target, "USER"))  # a number, for runAsNonRoot
    users = [text for stage in chain(STAGES, target) for text in stage.of("RUN") if "useradd" in text]
    assert f"--uid {last(STAGES, target, 'USER').partition(':')[0]} " in users[0]


def test_jobs_have_no_health_and_the_server_has():
    for target in ("cpu", "cuda"):
        assert last(STAGES, target, "ENTRYPOINT") == ["kedro"]
        assert last(STAGES, target, "CMD") == ["run", "--pipelines=prune_medical"]
        assert last(STAGES, target, "HEALTHCHECK") == "NONE"
    assert "/health" in last(STAGES, "mlflow", "HEALTHCHECK")


def test_everything_that_is_installed_is_pinned():
    commands = [part for stage in STAGES.values() for text in stage.of("RUN") for part in text.split("&&")]
    installs = [command for command in commands if "pip install" in command]
    assert len(installs) == 6
    pins = ("--constraint constraints.txt", "==", "--no-deps")
    assert all(any(pin in command for pin in pins) for command in installs)


@pytest.mark.parametrize("target", ["packages-cpu", "packages-cuda"])
def test_code_is_in_no_layer_that_packages_are_installed_in(target):
    copied = [source for stage in chain(STAGES, target) for _, sources, _ in stage.copies for source in sources]
    assert set(copied) == {"constraints.txt", "pyproject.toml"}


def test_what_is_copied_exists_and_is_not_ignored():
    patterns = read_patterns()
    sources = [one for stage in STAGES.values() for own, found, _ in stage.copies if not own for one in found]
    assert {"src", "conf", "data/01_raw", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists() and not is_ignored(source, patterns), source
    assert not is_ignored("conf/local/.gitkeep", patterns)  # kedro refuses a project without conf/local


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".env",
        "mlflow.db",
        "conf/local/credentials.yml",
        "conf/local/globals.yml",
        "conf/base/credentials.yml",
        "data/06_models/medical/model.safetensors",
        "src/moe_compress/__pycache__/cli.pyc",
        "tests/conftest.py",
    ],
)
def test_secrets_and_outputs_stay_out(path):
    assert is_ignored(path, read_patterns())


def test_commands_parse():
    commands = [text for stage in STAGES.values() for text in stage.of("RUN")]
    assert len(commands) >= 7
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_what_is_depended_on_is_read_from_the_project(tmp_path):
    (command,) = (part for part in STAGES["base"].of("RUN")[0].split("&&") if "tomllib" in part)
    subprocess.run(["bash", "-c", command.replace("> ", f"> {tmp_path}/")], cwd=ROOT, check=True)
    found = (tmp_path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch") for line in found) and any(line.startswith("boto3") for line in found)
