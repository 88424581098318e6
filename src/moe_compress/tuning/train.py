"""The training loop: transformers' Trainer, stopped early, and gone on from its last whole checkpoint."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerState, TrainingArguments

from moe_compress.errors import EvaluationError, ResourceError
from moe_compress.tuning.objective import Objective
from moe_compress.tuning.settings import TuneSettings
from moe_compress.tuning.texts import IGNORED, EncodedTexts, collate
from moe_compress.types import TuningCourse, TuningStep

logger = logging.getLogger(__name__)

_STATE = "trainer_state.json"
Batches = Sequence[Mapping[str, torch.Tensor]]


class _Tuner(Trainer):  # type: ignore[misc]
    """The Trainer with a validation loss that counts every token alike, however texts fall into batches."""

    def __init__(self, validation: Batches, **options: Any):
        super().__init__(**options)
        self._validation = validation

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Return the validation loss, and tell the callbacks."""
        metrics = {"eval_loss": measure_loss(self.model, self._validation)}
        logger.info("tuning: step %d, validation loss %.4f", self.state.global_step, metrics["eval_loss"])
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train(objective: Objective, texts: EncodedTexts, settings: TuneSettings, folder: Path) -> TuningCourse:
    """Return how training went; the objective's model then has the weights of the best validation.

    If no validation was better than before the first step, the best step is 0, and the weights are not to be used.

    Args:
        objective: the model and its loss.
        texts: what to train on and validate with.
        settings: how.
        folder: where checkpoints are, and where training goes on from the last one.

    Raises:
        EvaluationError: if the loss is no finite number.
        ResourceError: if the device's memory runs out.
    """
    objective.to(settings.device)
    validation = _batches(texts.validation, settings.batch_size)
    try:
        before = measure_loss(objective, validation)
        last = find_last(folder)
        if last is None or not _is_over(last):
            tuner = _build_tuner(objective, texts, validation, settings, folder)
            tuner.train(resume_from_checkpoint=str(last) if last else None)
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            "the device's memory ran out while tuning; lower tune.batch_size, or run the same command again if "
            "something else had taken it, which goes on from the last validation"
        ) from error
    last = find_last(folder)
    assert last is not None
    state = TrainerState.load_from_json(str(last / _STATE))
    is_better = state.best_metric is not None and state.best_metric < before
    if is_better:
        objective.load_state_dict(load_file(folder / f"checkpoint-{state.best_global_step}" / "model.safetensors"))
    return TuningCourse(before, state.best_global_step if is_better else 0, _read_steps(state.log_history))


def _build_tuner(
    objective: Objective, texts: EncodedTexts, validation: Batches, settings: TuneSettings, folder: Path
) -> Trainer:
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.clip,
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.eval_every,
        save_total_limit=2,  # the best and the last
        logging_steps=settings.eval_every,
        logging_nan_inf_filter=False,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # how long it has been without a new best
        use_cpu=next(objective.parameters()).device.type == "cpu",
        seed=settings.seed,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # the Trainer would copy the model to every GPU it sees
    tuner = _Tuner(
        validation,
        model=objective,
        args=arguments,
        data_collator=collate,
        train_dataset=list(texts.training),
        eval_dataset=list(texts.validation),
        callbacks=[EarlyStoppingCallback(settings.patience)],
    )
    tuner.remove_callback(PrinterCallback)
    return tuner


def measure_loss(objective: Objective, batches: Batches) -> float:
    """Return the mean loss over the predicted tokens of all batches, in nats; draws no random number.

    Raises:
        EvaluationError: if it is no finite number.
    """
    was_training = objective.training
    objective.eval()
    device = next(objective.parameters()).device
    one = torch.ones((), device=device)
    with torch.no_grad():
        moved = ({name: value.to(device) for name, value in batch.items()} for batch in batches)
        total = sum(float(objective(**batch, num_items_in_batch=one)["loss"]) for batch in moved)
    objective.train(was_training)
    loss = total / sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
    if not math.isfinite(loss):
        raise EvaluationError(
            f"the validation loss is {loss} while tuning; lower tune.learning_rate, or check the pruned model's "
            "weights"
        )
    return loss


def _batches(texts: Sequence[Sequence[int]], size: int) -> Batches:
    ordered = sorted(texts, key=len, reverse=True)
    return [collate(ordered[start : start + size]) for start in range(0, len(ordered), size)]


def find_last(folder: Path) -> Path | None:
    """Return the last checkpoint that is whole; its state is written last, and a kill may leave it cut."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    return next((path for path in reversed(found) if _read_state(path) is not None), None)


def _read_state(checkpoint: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text())
    except (OSError, ValueError):
        return None
    return state


def _is_over(checkpoint: Path) -> bool:
    """Whether training ended at a checkpoint: at the last step, or early, which the Trainer itself would forget."""
    state = _read_state(checkpoint)
    assert state is not None
    control: Mapping[str, Any] = state["stateful_callbacks"]["TrainerControl"]["args"]
    return bool(control["should_training_stop"]) or state["global_step"] >= state["max_steps"]


def _read_steps(history: Sequence[Mapping[str, Any]]) -> tuple[TuningStep, ...]:
    """Return each validated step with the mean training loss since the one before."""
    training = {entry["step"]: float(entry["loss"]) for entry in history if "loss" in entry}
    return tuple(
        TuningStep(entry["step"], training.get(entry["step"], math.nan), float(entry["eval_loss"]))
        for entry in history
        if "eval_loss" in entry
    )
