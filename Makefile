# The only commands anyone types: `make setup` once, then `make run`, `make test`, `make check`, `make docs`, `make results`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DOMAIN ?= medical

# Nothing here reports to anyone: Kedro, MLflow and Hugging Face stay silent and offline.
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE := 1
export NO_MKDOCS_2_WARNING := true

.PHONY: setup run test check docs benchmarks results clean

setup: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/pip install --quiet $(shell grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,reference,benchmarks,servers,tune]'
	touch $@

run: setup
	$(BIN)/kedro run --pipelines=prune_$(DOMAIN)

test: setup
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: setup
	$(BIN)/ruff format --check src tests benchmarks examples scripts
	$(BIN)/ruff check src tests benchmarks examples scripts
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(BIN)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/mkdocs serve"

$(BIN)/.installed-docs: $(BIN)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $@

benchmarks: setup
	$(BIN)/python -m benchmarks.collect
	$(BIN)/python -m benchmarks.rewrite
	$(BIN)/python -m benchmarks.plan
	$(BIN)/python -m benchmarks.select
	$(BIN)/python -m benchmarks.scaling

results: setup
	$(BIN)/kedro run --pipelines=results

clean:
	rm -rf $(VENV) data/0[2-8]_* mlruns mlflow.db site
