"""Every command that the pages show is there, with the names it uses; those that take seconds are typed."""

from __future__ import annotations

import os
import re
import shlex
import tomllib
from functools import cache, partial
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner
from kedro.config import OmegaConfigLoader
from mlflow.cli import cli as mlflow_commands

from moe_compress import methods
from moe_compress.cli import cli, run
from moe_compress.pipeline_registry import register_pipelines
from moe_compress.pipelines import parameters as blocks
from moe_compress.pipelines.results_plans import ResultsParameters
from moe_compress.settings import CONFIG_LOADER_ARGS
from moe_compress.tuning.settings import TuneSettings

# The libraries' own warnings are theirs to mend; ours stay errors.
pytestmark = pytest.mark.filterwarnings("ignore", "error:::moe_compress")

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"bash", "json", "python", "text", "yaml"}
# What cannot be tried here, each with the reason.
UNTRIED = {
    "kedro viz run": "needs the extra viz, and serves until it is stopped",
    "kedro registry list": "Kedro's own; tests/pipelines/test_command.py looks into the registry",
    "source .venv/bin/activate": "what make setup makes",
}
UNTRIED_PROGRAMS = {
    "docker": "needs a container engine; tests/images and tests/test_compose.py read the files",
    "hadolint": "is no package of ours",
    "kubectl": "needs a cluster; tests/operations/test_export.py reads what it is given",
}
MODELS = {
    "collect": blocks.CollectParameters,
    "data": blocks.DataParameters,
    "evaluate": blocks.EvaluateParameters,
    "release": blocks.ReleaseParameters,
    "results": ResultsParameters,
    "rewrite": blocks.RewriteParameters,
    "select": blocks.SelectParameters,
    "sweep": blocks.SweepParameters,
    "tune": TuneSettings,
}


def fences(path):
    """Yield language and text of a page's fenced blocks, also of those inside lists."""
    for found in re.finditer(r"^( *)```(\S*)\n(.*?)^\1```", path.read_text(), re.S | re.M):
        yield found[2], found[3]


def lines_of(path):
    for language, text in fences(path):
        if language == "bash":
            lines = text.replace("\\\n", " ").splitlines()
            yield from (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def inline_commands(path):
    """Yield what stands in a sentence between backticks and can be typed as it is."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.S | re.M)
    for said in re.findall(r"`(kedro (?:run|plan|compress|tracking)[^`]*)`", text):
        said = re.sub(r"\$[A-Z_]+", "1", " ".join(said.split()))
        if "..." in said:
            continue
        if "--" in said or (said.startswith("kedro compress ") and len(said.split()) > 3):
            yield said


def shown_domains():
    """Return the domains that pages tell the reader to configure."""
    found = {}
    for path in PAGES:
        for language, text in fences(path):
            if language == "yaml" and text.startswith("domains:"):
                found |= yaml.safe_load(text)["domains"]
    return found


SHOWN = shown_domains()
COMMANDS = [(path, line) for path in PAGES for line in (*lines_of(path), *inline_commands(path))]


def load_parameters(env, params):
    return OmegaConfigLoader(str(ROOT / "conf"), env=env, runtime_params=params, **CONFIG_LOADER_ARGS)["parameters"]


load_plain = cache(partial(load_parameters, params=None))
"""What is loaded is shared: nobody changes it."""


@pytest.fixture(scope="module")
def registered():
    here = Path.cwd()
    os.chdir(ROOT)
    try:
        pipelines = register_pipelines()
    finally:
        os.chdir(here)
    kinds = ("prune", "apply", "sweep", "collect", "reduce")
    return set(pipelines) | {f"{kind}_{name}" for kind in kinds for name in SHOWN}


def check_kedro_run(words, registered):
    options = run.make_context("run", words).params
    assert set(options["pipelines"]) <= registered
    assert options["env"] is None or (ROOT / "conf" / options["env"]).is_dir()
    given = options["params"]
    plain = load_plain(options["env"])
    assert set(given) <= {*plain, "base_model", "domains_folder"}, given
    parameters = load_parameters(options["env"], given) if given else plain
    for name, model in MODELS.items():
        model.model_validate(parameters[name])
    for name, block in given.get("domains", {}).items():
        assert name in {*plain["domains"], *SHOWN}
        blocks.SelectParameters.model_validate({**parameters["select"], **block.get("select", {})})
    chosen = blocks.SelectParameters.model_validate(parameters["select"])
    chosen.budget.as_budget()
    methods.check_parameters(chosen.method, chosen.parameters)


def check_kedro(words, registered):
    group, *rest = words
    if group == "run":
        return check_kedro_run(rest, registered)
    name, *rest = rest
    return cli.commands[group].commands[name].make_context(name, rest)


def check_make(words, _):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert set(words) <= set(targets)


def check_pip(words, _):
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert words[0] == "install"
    asked = re.fullmatch(r"(?:moe-compress|\.)\[(.*)\]", words[1])
    assert set(asked[1].split(",")) <= set(known)


def check_script(words, _):
    assert (ROOT / (f"{words[1].replace('.', '/')}.py" if words[0] == "-m" else words[0])).is_file()


def check_recompress(words, _):
    assert set(words) <= set(load_plain(None)["domains"])


def check_mlflow(words, _):
    command = mlflow_commands.get_command(click.Context(mlflow_commands), words[0])  # `ui` is an alias
    command.make_context(words[0], words[1:])


CHECKS = {
    "kedro": check_kedro,
    "make": check_make,
    "mlflow": check_mlflow,
    "pip": check_pip,
    "python": check_script,
    "scripts/recompress": check_recompress,
    "export": lambda words, _: [re.fullmatch(r"[A-Z0-9_]+=.*", word).group() for word in words],
    "printf": lambda words, _: None,  # a file of secrets, for the reader to fill in
}


@pytest.mark.parametrize("place", COMMANDS, ids=[f"{path.stem}: {line[:60]}" for path, line in COMMANDS])
def test_a_command_is_one_there_is(place, registered):
    words = shlex.split(place[1], comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    if " ".join(words) in UNTRIED or words[0] in UNTRIED_PROGRAMS:
        return
    assert words[0] in CHECKS, f"{words[0]}: check it here, or list it as untried with the reason"
    CHECKS[words[0]](words[1:], registered)


def test_nothing_is_untried_that_is_not_shown():
    shown = [shlex.split(line, comments=True) for _, line in COMMANDS]
    assert set(UNTRIED) <= {" ".join(words) for words in shown}
    assert set(UNTRIED_PROGRAMS) <= {words[0] for words in shown}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_block_says_what_it_is(path):
    assert {language for language, _ in fences(path)} <= LANGUAGES
    assert path.read_text().count("```") == 2 * len(list(fences(path)))


@pytest.mark.parametrize(
    "line",
    [
        "run --pipelines=prune_dental",
        "run --pipelines=prune_medical --params=select.metod=reap",
        "run --pipelines=prune_medical --params=select.method=rap",
        "run --pipelines=prune_medical --params=slect.method=reap",
        "run --pipelines=prune_medical --env=nowhere",
        "compress show",
        "plan shw medical",
    ],
)
def test_a_command_with_a_wrong_name_would_be_found(line, registered):
    with pytest.raises(Exception):  # noqa: B017
        check_kedro(line.split(), registered)


def test_the_blocks_of_shown_domains_are_valid():
    assert {"bookkeeping", "clinic", "legal"} <= set(SHOWN)
    shared = load_plain(None)
    for name, block in SHOWN.items():
        domain = blocks.DomainParameters.model_validate(block)
        assert domain.name == name
        domain.selection(blocks.SelectParameters.model_validate(shared["select"]))
        domain.gate_entries(shared["gates"])


def test_verdicts_that_are_shown_count_the_gates_there_are():
    conf = load_plain(None)
    shown = {
        int(count) for path in PAGES for count in re.findall(r"^ Passed .*?(\d+) gates", path.read_text(), re.M)
    }
    assert shown == {len(conf["gates"]) + len(conf["statistics_gates"])}


def type_line(line):
    group, name, *words = shlex.split(line, comments=True)[1:]
    return CliRunner().invoke(cli.commands[group].commands[name], words)


def test_what_the_first_run_page_looks_at_and_promotes(pruned):
    """The page's own lines, in its order, after one run of a tiny model in place of the embedded one."""
    typed = [line for line in lines_of(ROOT / "docs/first-run.md") if re.match(r"kedro (plan|compress) ", line)]
    assert [line.split()[2] for line in typed] == ["show", "show", "check", "promote", "verify"]
    for line in typed:
        done = type_line(line)
        assert done.exit_code == 0, f"{line}: {done.output}{done.exception!r}"
