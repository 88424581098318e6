"""Tune one pruned checkpoint on one device: load it, train it, and save what came of it as transformers does."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import set_seed

from moe_compress.errors import ParameterError
from moe_compress.families.building import build_meta_model
from moe_compress.loading import load_model, load_tokenizer
from moe_compress.tuning.memory import estimate_memory, refuse_what_cannot_fit
from moe_compress.tuning.objective import Objective
from moe_compress.tuning.parts import merge_adapters, prepare_student, refuse_quantised
from moe_compress.tuning.settings import TuneSettings
from moe_compress.tuning.texts import encode_texts
from moe_compress.tuning.train import train
from moe_compress.types import MoELayout, TuningRecord

_SAVED = "saved"


class Pruned(NamedTuple):
    """A checkpoint to tune.

    Attributes:
        folder: where it is.
        config: its `config.json`.
        layout: its layout.
    """

    folder: Path
    config: Mapping[str, Any]
    layout: MoELayout


class Tuned(NamedTuple):
    """What came of it.

    Attributes:
        record: what was trained, and how it went.
        folder: a folder with the new weights in the model's own dtype; None if none were better than the old.
        tied: names of weights that are others' under a second name -> the other.
    """

    record: TuningRecord
    folder: Path | None
    tied: Mapping[str, str]


def tune(
    pruned: Pruned,
    base: tuple[Path, Mapping[str, Any]],
    texts: Sequence[str],
    num_left_out: int,
    settings: TuneSettings,
    work: Path,
    free_bytes: int,
) -> Tuned:
    """Return the tuned model's weights, saved under `work`, where an interrupted run with the same inputs goes on.

    Args:
        pruned: the checkpoint to tune.
        base: folder and `config.json` of the model it was pruned from, read only to distill.
        texts: what to train on and validate with, no two alike.
        num_left_out: texts that were not used.
        settings: how.
        work: a folder for this tuning alone.
        free_bytes: of the device's memory.

    Raises:
        UnsupportedModelError: if the checkpoint is quantised, or has none of what is to be trained.
        ParameterError: if several processes were started, or what is asked for is not installed.
        ResourceError: if the memory does not suffice.
        DataError: if there are too few texts.
        EvaluationError: if the loss is no finite number.
    """
    refuse(pruned.config)
    encoded = encode_texts(
        texts, load_tokenizer(pruned.folder), settings.max_tokens, settings.validation, settings.seed
    )
    longest = max(map(len, encoded.training + encoded.validation))
    _check_memory(pruned, base[1], settings, longest, free_bytes)
    # The base is the larger of the two: it leaves the host's memory before the other one comes into it.
    teacher = _load(base[0], settings).eval().to(settings.device) if settings.objective == "distill" else None
    set_seed(settings.seed)  # of the added matrices
    student = prepare_student(_load(pruned.folder, settings), pruned.config, settings)
    objective = Objective(student, teacher, settings)
    trained = objective.trained()
    course = train(objective, encoded, settings, work)
    record = TuningRecord(
        course=course,
        num_training=len(encoded.training),
        num_validation=len(encoded.validation),
        num_left_out=num_left_out,
        num_trained=sum(value.numel() for value in trained.values()),
        num_parameters=sum(p.numel() for name, p in student.named_parameters() if ".lora_" not in name),
        adapted=_describe(trained) if settings.kind == "lora" else (),
    )
    if course.best_step == 0:
        return Tuned(record, None, {})
    model = merge_adapters(student)
    shutil.rmtree(work / _SAVED, ignore_errors=True)
    model.save_pretrained(work / _SAVED)
    return Tuned(record, work / _SAVED, dict(model.all_tied_weights_keys))


def refuse(config: Mapping[str, Any]) -> None:
    """Check that a checkpoint can be tuned, and that this is the only process.

    Raises:
        UnsupportedModelError: if it is quantised.
        ParameterError: if several processes were started.
    """
    refuse_quantised(config)
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ParameterError(
            f"tuning runs in one process, and {count} were started; collect with torchrun, and then run the same "
            "command without it"
        )


def _check_memory(
    pruned: Pruned, base_config: Mapping[str, Any], settings: TuneSettings, longest: int, free_bytes: int
) -> None:
    """Check from names and shapes alone that tuning fits on the device."""
    student = prepare_student(build_meta_model(pruned.config).to(_dtype(settings)), pruned.config, settings)
    base = build_meta_model(base_config).to(_dtype(settings)) if settings.objective == "distill" else None
    needs = estimate_memory(student, base, pruned.layout, settings, longest)
    refuse_what_cannot_fit(needs, free_bytes, settings.device)


def _dtype(settings: TuneSettings) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def _load(folder: Path, settings: TuneSettings) -> Any:
    """Return a model that computes in the dtype asked for."""
    return load_model(folder, dtype=_dtype(settings), local_files_only=True)


def _describe(trained: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the paths of what matrices were added to, as they are without peft, numbers written as `*`."""
    plain = (name.removeprefix("base_model.model.").replace(".base_layer", "") for name in trained)
    return tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", name.partition(".lora_")[0]) for name in plain))
