# The only commands anyone types: `make setup` once, then `make run`, `make test`, `make check`, `make results`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOMAIN ?= medical

# Nothing here reports to anyone: Kedro, MLflow and Hugging Face stay silent and offline.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE := 1

.PHONY: setup run test check benchmarks results clean

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet $(shell grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,reference,benchmarks,servers]'
	touch $@

run: setup
	$(BIN)/kedro run --pipelines=prune_$(DOMAIN)

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

check: setup
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmarks: setup
	$(BIN)/python -m benchmarks.collect
	$(BIN)/python -m benchmarks.rewrite
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.select

results: setup
	$(BIN)/kedro run --pipelines=results

clean:
	rm -rf $(VENV) data/0[2-8]_* mlruns mlflow.db
