"""A whole project in a temporary folder: the real configuration over a tiny random model and toy domains."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import tempfile
from contextlib import closing
from functools import cache
from pathlib import Path

import mlflow
import pytest
import torch
from click.testing import CliRunner
from kedro.framework import project as kedro_project
from tests.registry.conftest import empty_database, make_database  # noqa: F401
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Glm4MoeConfig, Glm4MoeForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
WORDS = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "fever",
    "cough",
    "liver",
    "heart",
    "bank",
    "loan",
    "sum",
    "def",
    "return",
    "class",
    "add",
    "two",
    "three",
]
DOMAINS = ("medical", "code", "math", "finance", "general")


def pytest_collection_modifyitems(items):
    """A whole run goes through libraries whose own deprecations are theirs to mend; our warnings stay errors."""
    for item in items:
        if {"project", "pruned"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::moe_compress"))


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def make_model(folder):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = Glm4MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        n_routed_experts=16,
        num_experts_per_tok=4,
        n_shared_experts=1,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
    )
    Glm4MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_domain(folder, name):
    rng = random.Random(name)

    def say(count):
        return " ".join(rng.choices(WORDS, k=count))

    demonstrations = [{"id": f"d{i}", "question": f"{say(8)} {i}", "answer": say(4)} for i in range(12)]
    benchmark = [
        {
            "id": f"b{i}",
            "kind": "toy",
            "question": f"{say(9)} q{i}",
            "choices": [f"{say(2)} {j}" for j in range(4)],
            "answer": rng.randrange(4),
        }
        for i in range(24)
    ]
    write_rows(folder / name / "demonstrations.jsonl", demonstrations)
    write_rows(folder / name / "benchmark.jsonl", benchmark)
    write_rows(folder / name / "heldout.jsonl", [{"id": f"h{i}", "text": say(20)} for i in range(6)])


@cache
def make_inputs(place):
    """Make a model and domains in a place, once for all folders of tests that have this file's fixtures."""
    folder = place / "inputs"
    make_model(folder / "model")
    for name in DOMAINS:
        make_domain(folder / "domains", name)
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory):
    """A model and domains; tests that change them work on the copies in their own project."""
    return make_inputs(tmp_path_factory.getbasetemp())


def forget_the_experiment(patch):
    """Have MLflow's idea of the current experiment be what it was before, once the patch is undone."""
    patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    patch.setenv("MLFLOW_EXPERIMENT_ID", "")
    patch.delenv("MLFLOW_EXPERIMENT_ID")


class Project:
    """A Kedro project to type commands in."""

    def __init__(self, folder):
        self.folder = folder

    def run(self, *arguments):
        """Run `kedro run` with these arguments in this process; returns click's result."""
        from moe_compress.cli import run

        result = CliRunner().invoke(run, list(arguments))
        if result.exit_code:
            print(result.output)  # pytest shows it where a test did not expect that
        return result

    def prune(self, *params, domain="medical"):
        given = [f"--params={','.join(params)}"] if params else []
        return self.run(f"--pipelines=prune_{domain}", *given)

    def find(self, pattern):
        return sorted((self.folder / "data").glob(pattern))


def copy_project(inputs, folder):
    """Lay out a project with the real configuration and these inputs in a folder."""
    for name in ("conf", "pyproject.toml"):
        source = ROOT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, folder / name)
    shutil.rmtree(folder / "conf" / "local", ignore_errors=True)
    (folder / "conf" / "local").mkdir()
    (folder / "src").mkdir()  # Kedro wants the folder; the package is the installed one
    shutil.copytree(inputs, folder / "data" / "01_raw")
    (folder / "conf" / "local" / "globals.yml").write_text(
        "base_model: data/01_raw/model\ndomains_folder: data/01_raw/domains\n"
    )
    # Timing starts two processes, and texts are written token by token; tests that look at these ask for more.
    (folder / "conf" / "local" / "parameters_evaluate.yml").write_text(
        "evaluate: {batch_sizes: [], max_new_tokens: 16}\n"
    )
    # A random model knows nothing, so what it keeps of that says nothing either.
    (folder / "conf" / "local" / "parameters_gates.yml").write_text(
        "gates:\n"
        "  domain_accuracy_kept: {metric: accuracy.domain, at_least: 0.0}\n"
        "  no_loops_added: {metric: loops_added.domain, at_most: 1.0}\n"
    )


def enter(folder, patch):
    """Return the project in a folder, in which commands are typed until the patch is undone."""
    patch.chdir(folder)
    mlflow.set_tracking_uri(None)  # a run sets it, and does not take it back
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    # Kedro's own way in adds each project to the places where this process looks for every module.
    if kedro_project.PACKAGE_NAME is None:
        kedro_project.configure_project("moe_compress")
    kedro_project.pipelines.configure("moe_compress.pipeline_registry")
    return Project(folder)


@pytest.fixture
def project(tmp_path, inputs, empty_database, monkeypatch):  # noqa: F811
    copy_project(inputs, tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return enter(tmp_path, monkeypatch)


@pytest.fixture
def one_figure(monkeypatch):
    """Leave a report one figure: drawing is a third of a run, and runs like others need not draw all again."""
    from moe_compress.reporting import figures

    monkeypatch.setattr(figures, "_FILES", (figures.quality,))


@cache
def make_finished(place, *params):
    """Make a project whose one run, `prune_medical` with these parameters, registered version 1."""
    folder = Path(tempfile.mkdtemp(prefix="finished-", dir=place))
    copy_project(make_inputs(place), folder)
    shutil.copyfile(make_database(place), folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        forget_the_experiment(patch)
        assert enter(folder, patch).prune(*params).exit_code == 0
    return folder


@pytest.fixture
def pruned(tmp_path_factory, tmp_path, monkeypatch):
    """A project in which `prune_medical` was run: a copy of the one that is made once."""
    finished = make_finished(tmp_path_factory.getbasetemp())
    forget_the_experiment(monkeypatch)
    return enter(copy_finished(finished, tmp_path / "project"), monkeypatch)


def copy_finished(finished, folder):
    """Copy a project with its runs and versions, which MLflow knows by absolute places."""
    shutil.copytree(finished, folder)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table, column in [(t, row[1]) for t in tables for row in database.execute(f"PRAGMA table_info('{t}')")]:
            database.execute(
                f'UPDATE "{table}" SET "{column}" = replace("{column}", :old, :new) WHERE instr("{column}", :old)',
                {"old": str(finished), "new": str(folder)},
            )
    return folder
