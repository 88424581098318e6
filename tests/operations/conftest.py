"""The whole project of the pipelines' tests and the store of the registry's, for the commands that use both."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tests.pipelines.conftest import inputs, one_figure, project, pruned, pytest_collection_modifyitems  # noqa: F401
from tests.registry.conftest import checkpoint, empty_database, store  # noqa: F401


class Operator:
    """A person who types `kedro compress`."""

    def __init__(self, where):
        self.project = where

    def type(self, *words, code=0):
        from moe_compress.compress_commands import compress

        result = CliRunner().invoke(compress, list(words))
        assert result.exit_code == code, f"{words}: {result.output}{result.exception!r}"
        return " ".join(result.output.split())

    def ask(self, *words, code=0):
        from moe_compress.compress_commands import compress

        result = CliRunner().invoke(compress, [*words, "--json"])
        assert result.exit_code == code, f"{words}: {result.output}{result.exception!r}"
        return json.loads(result.stdout)


@pytest.fixture
def operator(project):  # noqa: F811
    return Operator(project)


def train_on(folder, by=1.01):
    """Give a base model new weights."""
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    name = min(name for name in tensors if "embed" in name)
    tensors[name] = tensors[name] * by
    save_file(tensors, path, metadata={"format": "pt"})
