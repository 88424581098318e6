import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from functools import cache

import mlflow
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from moe_compress.registry.mlmodel import write_mlmodel

WORDS = ["<unk>", "<eos>", "Question", "Answer", ":", "?", "Which", "chapter"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A random Qwen3-MoE of a few thousand weights with a word tokenizer and its MLmodel."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=1,
    )
    Qwen3MoeForCausalLM(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="<eos>").save_pretrained(folder)
    write_mlmodel(folder)
    return folder


@cache
def make_database(place):
    """Make a store with its tables in a place, once for all: making them takes longer than any test."""
    path = place / "empty.db"
    mlflow.set_tracking_uri(f"sqlite:///{path}")
    mlflow.MlflowClient().search_registered_models()
    mlflow.set_tracking_uri(None)
    return path


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    """A store with its tables and nothing in them, to copy."""
    return make_database(tmp_path_factory.getbasetemp())


@contextmanager
def tracking_at(uri, artifacts=None):
    """Have MLflow's globals point at a store with one experiment, and leave them as they were."""
    mlflow.set_tracking_uri(uri)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_EXPERIMENT_ID", mlflow.create_experiment("tests", artifact_location=artifacts))
        yield
    while mlflow.active_run() is not None:
        mlflow.end_run()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def store(tmp_path, empty_database):
    """A store of the test's own, with its artifacts under tmp_path/artifacts."""
    database = tmp_path / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    with tracking_at(f"sqlite:///{database}", (tmp_path / "artifacts").as_uri()):
        yield tmp_path


SERVE = """
from werkzeug.serving import make_server
from mlflow.server import app
listening = make_server("127.0.0.1", 0, app)
print(listening.server_port, flush=True)
listening.serve_forever()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory, empty_database):
    """MLflow's own server, in a process of its own, whose artifact root is a folder of this machine."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    database = f"sqlite:///{folder / 'mlflow.db'}"
    stores = {
        "_MLFLOW_SERVER_FILE_STORE": database,
        "_MLFLOW_SERVER_REGISTRY_STORE": database,
        "_MLFLOW_SERVER_ARTIFACT_ROOT": (folder / "artifacts").as_uri(),
    }
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        env={**os.environ, **stores},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        port = process.stdout.readline().strip()
        with tracking_at(f"http://127.0.0.1:{port}"):
            yield folder
        process.kill()
