"""Small real models, built from stock classes, that the whole suite shares."""

from __future__ import annotations

import gc
import os

import jinja2
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A test that takes long on a busy machine would have more metrics than it logs.
os.environ.setdefault("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
# Tests that run side by side, one process a core, would wait for each other's threads.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items):
    """Start whole runs of a project first: they take minutes a file, and none should be left over at the end."""
    items.sort(key=lambda item: "pipelines" not in item.path.parts)


def pytest_collection_finish():
    """Spare the garbage collector half a million objects of modules, which live as long as the tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def templates_compiled_once():
    """Great Expectations makes an engine for every page, which would compile the same templates each time."""
    compile_template, compiled = jinja2.Environment.compile, {}

    def compile_once(environment, source, *named, **options):
        key = (type(environment), source, *named, *options.items())
        if key not in compiled:
            compiled[key] = compile_template(environment, source, *named, **options)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", compile_once)
        yield
