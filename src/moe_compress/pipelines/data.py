"""Stage 1, data: check the request and the demonstrations, cheapest first, before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from kedro.pipeline import Node, Pipeline

from moe_compress import methods
from moe_compress.datasets.rows import find_rows
from moe_compress.errors import DataError, ParameterError
from moe_compress.gates.demonstrations import (
    DemonstrationLimits,
    DemonstrationSet,
    check_demonstrations,
)
from moe_compress.pipelines.budget import resolve_budget
from moe_compress.pipelines.lineage import record_lineage
from moe_compress.pipelines.parameters import DataParameters, DomainParameters, RewriteParameters, SelectParameters
from moe_compress.tuning.settings import TuneSettings
from moe_compress.types import Budget, CheckpointReference, Demonstrations, MoELayout, TensorMap, digest_of

TEXT = "Question: {question}\nAnswer: {answer}"
"""How a demonstration reads to the model; the benchmark asks in the same form."""

Row = dict[str, Any]


def check_request(
    base_model: CheckpointReference,
    select: SelectParameters,
    own: DomainParameters,
    rewrite: RewriteParameters,
    tune: TuneSettings,
) -> tuple[MoELayout, Budget]:
    """Return the base model's layout and the budget in experts, after checking that they fit; reads names only.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if the budget does not fit the model, the method or the layout it is to be written with.
        PlanError: if what the method will plan cannot be written of this model.
        UnsupportedModelError: if the architecture's experts cannot be told, or the result cannot be tuned.
    """
    chosen = own.selection(select)
    limits = chosen.budget.as_budget()
    methods.check_scope(chosen.method, limits)
    refuse_uneven_layers(limits, rewrite)

    from moe_compress.checkpoint.index import read_index
    from moe_compress.families.derive import derive_tensor_map

    index = read_index(base_model.path)
    tensor_map = derive_tensor_map(index.config, index.shapes)
    budget = resolve_budget(chosen, rewrite, index, tensor_map)
    refuse_unwritable(chosen, budget, rewrite, tensor_map)
    if tune.steps and rewrite.weights == "keep":
        from moe_compress.tuning.parts import refuse_quantised

        refuse_quantised(index.config)
    return tensor_map.layout, budget


def check_collection(base_model: CheckpointReference, select: SelectParameters, own: DomainParameters) -> MoELayout:
    """Return the base model's layout, whose layers may keep different numbers of experts; reads names only.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a parameter does not suit the method whose statistics are collected.
        UnsupportedModelError: if the architecture's experts cannot be told.
    """
    chosen = own.selection(select)
    methods.check_parameters(chosen.method, chosen.parameters)

    from moe_compress.checkpoint.index import read_index
    from moe_compress.families.derive import derive_layout

    index = read_index(base_model.path)
    return derive_layout(index.config, index.shapes)


def refuse_uneven_layers(budget: Budget, rewrite: RewriteParameters) -> None:
    """Check that what the budget chooses can be written.

    Raises:
        ParameterError: if it gives layers of different size and they are to be written as one.
    """
    if budget.scope != "per_layer" and rewrite.layout == "uniform":
        raise ParameterError(
            f"select.budget.scope is '{budget.scope}', which keeps more experts in some layers than in others, but "
            "rewrite.layout 'uniform' writes one number for all; set rewrite.layout to per_layer, which only "
            "moe_compress.load_model loads, or select.budget.scope to per_layer"
        )


def refuse_unwritable(
    chosen: SelectParameters, budget: Budget, rewrite: RewriteParameters, tensor_map: TensorMap
) -> None:
    """Check that what the method will plan can be written of this model.

    Raises:
        PluginError: if there is no such method.
        ParameterError: if a parameter does not suit it.
        PlanError: if it cannot.
    """
    from moe_compress.checkpoint.rewrite import check_writable

    parameters = methods.check_parameters(chosen.method, chosen.parameters)
    layout = tensor_map.layout.flattened if chosen.groups == "flatten" else tensor_map.layout
    is_smaller = methods.drops_any(budget, layout)
    merging = layout.layers if is_smaller and parameters.merges(budget, layout) else ()
    is_uniform = budget.scope == "per_layer" or not is_smaller
    check_writable(tensor_map, merging, rewrite.weights, rewrite.mtp, is_smaller=is_smaller, is_uniform=is_uniform)


def prepare_demonstrations(
    rows: Any,
    base_model: CheckpointReference,
    layout: MoELayout,
    domains_folder: Path,
    reporting_folder: Path,
    parameters: DataParameters,
    own: DomainParameters,
) -> tuple[Demonstrations, Path]:
    """Return the domain's demonstrations as texts, and the pages that record their validation.

    Every row is validated; a sample is drawn afterwards. `layout` stands for a request that was checked.

    Raises:
        DataError: one sentence for the first kind of fault found.
    """
    table = number_rows([dict(row) for row in rows])
    checked = tokenise(table, base_model.path, domains_folder / own.name)
    pages = validate(checked, parameters, reporting_folder)
    chosen = sample(table, parameters)
    demonstrations = Demonstrations(
        domain=own.name,
        ids=tuple(str(row["id"]) for row in chosen),
        texts=tuple(text_of(row) for row in chosen),
        digest=digest_of(chosen),
    )
    return demonstrations, pages


def text_of(row: Mapping[str, Any]) -> str:
    """Return a demonstration as the model reads it."""
    return TEXT.format(question=row.get("question"), answer=row.get("answer"))


def number_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with numbers as text, each with an id: its own, or its position counted from 1."""
    texts = [
        {name: str(value) if isinstance(value, (int, float)) else value for name, value in row.items()}
        for row in rows
    ]
    return [{**row, "id": row.get("id") or str(number)} for number, row in enumerate(texts, start=1)]


def tokenise(rows: Sequence[Row], model: Path, folder: Path) -> DemonstrationSet:
    """Return a domain's rows with their lengths in the model's tokens, and the questions they must not repeat."""
    from moe_compress.evaluation.tasks import read_items
    from moe_compress.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    return DemonstrationSet(
        domain=folder.name,
        rows=rows,
        token_lengths=[len(tokenizer(text_of(row), verbose=False)["input_ids"]) for row in rows],
        benchmark_questions=[item.question for item in read_items(folder / "benchmark.jsonl")],
        source=str(find_rows(folder / "demonstrations.jsonl") or folder),
    )


def validate(checked: DemonstrationSet, parameters: DataParameters, reporting_folder: Path) -> Path:
    """Return the Data Docs of the demonstrations' validation.

    Raises:
        DataError: from the plain checks, once the pages show every check that failed.
    """
    from moe_compress.gates.expectations import record_demonstrations

    limits = DemonstrationLimits(parameters.min_demonstrations, parameters.min_tokens, parameters.max_tokens)
    record = record_demonstrations(checked, limits, reporting_folder / "gx")
    try:
        check_demonstrations(checked, limits)
    except DataError as error:
        raise DataError(f"{error}; see {os.path.relpath(record.data_docs)}") from error
    if not record.success:
        raise DataError(
            f"demonstrations of '{checked.domain}' failed {record.failures[0].description}; see {record.data_docs}"
        )
    return record.data_docs


def sample(rows: Sequence[Row], parameters: DataParameters) -> Sequence[Row]:
    """Return all rows, or a seeded sample of them in their own order."""
    if parameters.sample is None or parameters.sample >= len(rows):
        return rows
    chosen = np.random.default_rng(parameters.seed).choice(len(rows), parameters.sample, replace=False)
    return [rows[index] for index in sorted(chosen)]


def create_pipeline() -> Pipeline:
    """Return the stage: (base model, demonstration rows) -> layout, budget, demonstrations, lineage."""
    check = Node(
        check_request,
        ["base_model", "params:select", "params:domain", "params:rewrite", "params:tune"],
        ["layout", "budget"],
        name="check_request",
    )
    return Pipeline([check, demonstrations_node(), _lineage_node()])


def create_collect_pipeline() -> Pipeline:
    """Return the stage before statistics that nothing is planned from yet: it asks for no budget, so has none."""
    check = Node(
        check_collection, ["base_model", "params:select", "params:domain"], "layout", name="check_collection"
    )
    return Pipeline([check, demonstrations_node(), _lineage_node()])


def demonstrations_node() -> Node:
    """Return the node that checks and chooses demonstrations, once the request was checked."""
    return Node(
        prepare_demonstrations,
        [
            "demonstration_rows",
            "base_model",
            "layout",
            "domains_folder",
            "reporting_folder",
            "params:data",
            "params:domain",
        ],
        ["demonstrations", "demonstrations_docs"],
        name="validate_demonstrations",
    )


def _lineage_node() -> Node:
    return Node(
        record_lineage,
        ["base_model", "demonstrations", "run_keys", "domains_folder", "params:select", "params:domain"],
        "lineage",
        name="record_lineage",
    )
