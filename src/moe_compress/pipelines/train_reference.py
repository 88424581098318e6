"""Rebuild the embedded reference model: domains, tokenizer, training, export, measurement."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline
from pydantic import Field

from moe_compress.pipelines.parameters import Parameters

if TYPE_CHECKING:
    from moe_compress.reference.splits import SplitSizes
    from moe_compress.reference.train import TrainingSettings

Partitions = Mapping[str, Callable[[], str]]
"""File name without ending -> a function that reads the file."""


class SizeParameters(Parameters):
    """Rows of each small split of a domain, about."""

    demonstrations: int = Field(200, ge=1)
    calibration: int = Field(300, ge=1)
    heldout: int = Field(300, ge=1)

    def as_sizes(self) -> SplitSizes:
        """Return the sizes as the splitter takes them."""
        from moe_compress.reference.splits import SplitSizes

        return SplitSizes(**self.model_dump())


class TrainingParameters(Parameters):
    """How the model is trained; see `TrainingSettings` for what each one means."""

    steps: int = Field(4800, ge=1)
    batch_size: int = Field(32, ge=1)
    workers: int = Field(2, ge=1)
    learning_rate: float = Field(3e-3, gt=0)
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    balance: float = Field(3e-3, ge=0)
    clip: float = Field(1.0, gt=0)
    checkpoint_seconds: float = Field(180, ge=0)


class TrainReferenceParameters(Parameters):
    """The whole `train_reference` block."""

    seed: int = 0
    wordnet: Path = Path("/usr/share/wordnet")
    work_folder: Path
    model_folder: Path
    resume: bool = True
    sizes: SizeParameters = SizeParameters()
    vocab_size: int = Field(6144, ge=300)
    model: dict[str, Any]
    training: TrainingParameters = TrainingParameters()

    def as_settings(self) -> TrainingSettings:
        """Return the settings as the training loop takes them."""
        from moe_compress.reference.train import TrainingSettings

        return TrainingSettings(seed=self.seed, **self.training.model_dump())


def build_domains(parameters: TrainReferenceParameters) -> tuple[dict[str, str], dict[str, str]]:
    """Return the small splits and the training text of every domain, as JSON lines by file name.

    Raises:
        DataError: if a source is missing, or two splits share a text.
    """
    from moe_compress.reference.domains import build_domains as build
    from moe_compress.reference.splits import split_domain

    sizes = parameters.sizes.as_sizes()
    splits = [split_domain(items, sizes, parameters.seed) for items in build(parameters.wordnet, parameters.seed)]
    small = {
        f"{split.domain}/{name}": _as_lines(getattr(split, name))
        for split in splits
        for name in ("demonstrations", "calibration", "heldout", "benchmark")
    }
    return small, {split.domain: _as_lines(split.training) for split in splits}


def _as_lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _rows(partitions: Partitions, name: str) -> list[Any]:
    return [json.loads(line) for line in partitions[name]().split("\n") if line]


def train_tokenizer(training_text: Partitions, parameters: TrainReferenceParameters) -> str:
    """Return the tokenizer, as the text of its `tokenizer.json`."""
    from moe_compress.reference.domains import DOMAINS
    from moe_compress.reference.tokenizer import train_tokenizer as train_on

    texts = (text for domain in DOMAINS for text in _rows(training_text, domain))
    context_length = parameters.model["max_position_embeddings"]
    return str(train_on(texts, parameters.vocab_size, context_length).backend_tokenizer.to_str(pretty=True))


def train_model(
    training_text: Partitions, tokenizer_json: str, parameters: TrainReferenceParameters
) -> dict[str, Any]:
    """Train the model into the work folder; return the loss of every step and the tokens of every domain.

    Raises:
        DataError: if the work folder holds a checkpoint of another training and `resume` is true.
    """
    from moe_compress.reference.domains import DOMAINS
    from moe_compress.reference.export import load_checkpoint
    from moe_compress.reference.packing import pack
    from moe_compress.reference.tokenizer import open_tokenizer
    from moe_compress.reference.train import train

    tokenizer = open_tokenizer(tokenizer_json, parameters.model["max_position_embeddings"])
    encoded = [tokenizer(_rows(training_text, domain), verbose=False)["input_ids"] for domain in DOMAINS]
    end, padding = tokenizer.eos_token_id, tokenizer.pad_token_id
    sequences = pack(encoded, parameters.model["max_position_embeddings"], end, padding, parameters.seed)
    config = model_config(tokenizer_json, parameters)
    train(config, sequences, parameters.as_settings(), parameters.work_folder, parameters.resume)
    tokens = {domain: sum(map(len, texts)) for domain, texts in zip(DOMAINS, encoded, strict=True)}
    return {"losses": load_checkpoint(config, parameters.work_folder)[1], "tokens": tokens}


def model_config(tokenizer_json: str, parameters: TrainReferenceParameters) -> dict[str, Any]:
    """Return the model's configuration, with what the tokenizer decides filled in."""
    from moe_compress.reference.tokenizer import open_tokenizer

    tokenizer = open_tokenizer(tokenizer_json, parameters.model["max_position_embeddings"])
    return {
        **parameters.model,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def export_model(
    record: dict[str, Any], tokenizer_json: str, parameters: TrainReferenceParameters
) -> dict[str, Any]:
    """Write the model folder; return its configuration, its number of parameters and what it was trained on."""
    from moe_compress.reference.export import export_model as export
    from moe_compress.reference.export import load_checkpoint
    from moe_compress.reference.page import render
    from moe_compress.reference.tokenizer import open_tokenizer

    config = model_config(tokenizer_json, parameters)
    model, losses = load_checkpoint(config, parameters.work_folder)
    tokens, steps = sum(record["tokens"].values()), len(losses)
    seen = steps * parameters.training.batch_size * config["max_position_embeddings"]
    facts = {
        "config": config,
        "parameters": model.num_parameters(),
        "tokens": tokens,
        "seen_tokens": seen,
        "steps": steps,
    }
    card = render("model_card", seed=parameters.seed, epochs=seen / tokens, **facts)
    tokenizer = open_tokenizer(tokenizer_json, config["max_position_embeddings"])
    export(model, tokenizer, card, parameters.model_folder)
    return facts


def measure_model(
    facts: dict[str, Any], domains: Partitions, parameters: TrainReferenceParameters
) -> dict[str, Any]:
    """Return the model's losses, accuracies and routing on every domain, and what some of its experts keep."""
    from moe_compress.reference.domains import DOMAINS
    from moe_compress.reference.measure import DomainRows, load_model, measure

    rows = [
        DomainRows(
            domain=domain,
            benchmark=_rows(domains, f"{domain}/benchmark"),
            heldout=[row["text"] for row in _rows(domains, f"{domain}/heldout")],
            calibration=[row["text"] for row in _rows(domains, f"{domain}/calibration")],
        )
        for domain in DOMAINS
    ]
    return {**facts, **measure(load_model(parameters.model_folder), rows, parameters.seed)}


def write_results(measured: dict[str, Any], record: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """Return the results page and its figures as SVG by name."""
    from moe_compress.reference.page import draw_routing, draw_training, render

    figures = {
        "reference-training": draw_training(record["losses"]),
        "reference-routing": draw_routing(measured["routing"]),
    }
    return render("results", **{key: value for key, value in measured.items() if key != "routing"}), figures


def write_data_card(domains: Partitions, record: dict[str, Any]) -> str:
    """Return the data card of all domains."""
    from moe_compress.reference.cards import describe_sources, describe_splits
    from moe_compress.reference.page import render

    rows = {name: _rows(domains, name) for name in sorted(domains) if "/" in name}
    return render("data_card", sizes=describe_splits(rows, record["tokens"]), **describe_sources())


def create_pipeline() -> Pipeline:
    """Return the pipeline: sources -> domains -> tokenizer -> model -> folder -> measured results."""
    parameters = "params:train_reference"
    text, tokenizer, domains = "reference_training_text", "reference_tokenizer", "reference_domains"
    return Pipeline(
        [
            Node(build_domains, parameters, [domains, text], name="build_domains"),
            Node(train_tokenizer, [text, parameters], tokenizer, name="train_tokenizer"),
            Node(train_model, [text, tokenizer, parameters], "reference_record", name="train_reference_model"),
            Node(
                export_model,
                ["reference_record", tokenizer, parameters],
                "reference_facts",
                name="export_reference_model",
            ),
            Node(
                measure_model,
                ["reference_facts", domains, parameters],
                "reference_measured",
                name="measure_reference_model",
            ),
            Node(
                write_results,
                ["reference_measured", "reference_record"],
                ["reference_results", "reference_figures"],
                name="write_reference_results",
            ),
            Node(write_data_card, [domains, "reference_record"], "reference_data_card", name="write_data_card"),
        ]
    )
