"""Train the reference model: several worker processes, repeatable to the bit, resumable at any step."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from moe_compress.errors import DataError
from moe_compress.reference import experts
from moe_compress.reference.packing import PackedSequences

CHECKPOINT = "checkpoint.pt"
_MEETING = "workers-meet-here"
_IGNORED = -100
# glibc settings that keep freed memory, so that large tensors do not fault their pages in at every step.
_MEMORY_IS_KEPT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**29),
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class TrainingSettings:
    """How to train.

    Attributes:
        steps: Number of optimizer steps.
        batch_size: Sequences per step, over all workers.
        workers: Processes that share each step; they are one if a GPU is present.
        learning_rate: The highest one; warmed up linearly, then a cosine down to zero.
        warmup_steps: Steps of warming up.
        weight_decay: On matrices only.
        balance: Weight of the load-balancing loss.
        clip: Largest gradient norm.
        seed: Of the initial weights and the order of the sequences.
        checkpoint_seconds: Time between two checkpoints.
    """

    steps: int
    batch_size: int
    workers: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    balance: float
    clip: float
    seed: int
    checkpoint_seconds: float


def build_model(config: Mapping[str, Any], seed: int) -> PreTrainedModel:
    """Build a model with random weights, in float32, that runs its experts on sorted slices.

    Args:
        config: `model_type` and the fields of that type's configuration.
        seed: Of the weights.
    """
    experts.register()
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)
    model.set_experts_implementation(experts.IMPLEMENTATION)
    return model


def train(
    config: Mapping[str, Any],
    sequences: PackedSequences,
    settings: TrainingSettings,
    folder: Path,
    resume: bool,
) -> None:
    """Train until the last step; the result is the checkpoint in the folder.

    Args:
        config: As for `build_model`.
        sequences: What to train on.
        settings: How to train.
        folder: Where the checkpoint goes, and where it is taken up again.
        resume: Whether to go on from a checkpoint found there.

    Raises:
        DataError: The checkpoint found there comes from other settings or sequences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    resume = resume and (folder / CHECKPOINT).is_file()
    if resume:
        _refuse_other_checkpoint(folder / CHECKPOINT, _fingerprint(config, sequences, settings))
    arguments = (dict(config), sequences, settings, folder, resume)
    if settings.workers == 1 or torch.cuda.is_available():
        _work(0, 1, *arguments)
        return
    (folder / _MEETING).unlink(missing_ok=True)
    with _environment(_MEMORY_IS_KEPT):
        spawn(_join_and_work, args=(settings.workers, *arguments), nprocs=settings.workers)  # type: ignore[no-untyped-call]
    (folder / _MEETING).unlink(missing_ok=True)


def _refuse_other_checkpoint(path: Path, fingerprint: str) -> None:
    if torch.load(path, map_location="cpu", weights_only=True, mmap=True)["fingerprint"] != fingerprint:
        raise DataError(
            f"{path} comes from other settings or data; delete it, or set train_reference.resume to false"
        )


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes started meanwhile; what the user set himself stays."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _join_and_work(rank: int, workers: int, config: dict[str, Any], *rest: Any) -> None:
    meeting = rest[2] / _MEETING
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    dist.init_process_group("gloo", init_method=f"file://{meeting.resolve()}", rank=rank, world_size=workers)
    _work(rank, workers, config, *rest)
    dist.destroy_process_group()


def _work(
    rank: int,
    workers: int,
    config: dict[str, Any],
    sequences: PackedSequences,
    settings: TrainingSettings,
    folder: Path,
    resume: bool,
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() and workers == 1 else "cpu")
    run = _Run(config, sequences, settings, folder, device)
    if resume:
        run.load()
    saved = time.monotonic()
    bar = tqdm(
        range(run.step, settings.steps),
        "training",
        settings.steps,
        initial=run.step,
        disable=rank > 0,
        mininterval=5,
    )
    for step in bar:
        loss = run.advance(step, rank, workers)
        bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
        if rank == 0 and (time.monotonic() - saved > settings.checkpoint_seconds or run.step == settings.steps):
            run.save()
            saved = time.monotonic()


class _Run:
    """A model, its optimizer and how far they have come."""

    def __init__(
        self,
        config: dict[str, Any],
        sequences: PackedSequences,
        settings: TrainingSettings,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.settings, self.sequences, self.folder, self.device = settings, sequences, folder, device
        self.step = 0
        self.losses: list[float] = []
        self.fingerprint = _fingerprint(config, sequences, settings)
        self.model = build_model(config, settings.seed).to(device)
        self.balance = LoadBalance(self.model)
        self.gradient = _share_gradient(self.model)
        matrices = [parameter for parameter in self.model.parameters() if parameter.ndim > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.ndim <= 1]
        groups = [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95), fused=True)

    def advance(self, step: int, rank: int, workers: int) -> float:
        """Take one step; the last place of the shared gradient carries the loss, so that it is averaged too."""
        tokens = self._batch(step, rank, workers)
        self.gradient.zero_()
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            loss = language_loss(self.model, tokens, self.sequences.padding).mean()
        (loss + self.settings.balance * self.balance.loss()).backward()  # type: ignore[no-untyped-call]
        self.gradient[-1] = loss.detach()
        if workers > 1:
            dist.all_reduce(self.gradient)
            self.gradient /= workers
        self.losses.append(float(self.gradient[-1]))
        norm = self.gradient[:-1].norm()
        self.gradient *= torch.clamp(self.settings.clip / (norm + 1e-6), max=1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step)
        self.optimizer.step()
        self.step = step + 1
        return self.losses[-1]

    def _batch(self, step: int, rank: int, workers: int) -> Tensor:
        size, total = self.settings.batch_size, len(self.sequences.tokens)
        epoch, place = divmod(step, max(1, total // size))
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(total)
        rows = order[place * size : (place + 1) * size][rank::workers]
        return torch.from_numpy(self.sequences.tokens[rows]).long().to(self.device)

    def save(self) -> None:
        """Write the checkpoint beside its place, then move it there."""
        state = {
            "step": self.step,
            "losses": self.losses,
            "fingerprint": self.fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.folder / f"{CHECKPOINT}.partial"
        torch.save(state, partial)
        partial.replace(self.folder / CHECKPOINT)

    def load(self) -> None:
        """Take up the checkpoint in the folder."""
        state = torch.load(self.folder / CHECKPOINT, map_location=self.device, weights_only=True)
        self.step, self.losses = state["step"], state["losses"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _fingerprint(config: Mapping[str, Any], sequences: PackedSequences, settings: TrainingSettings) -> str:
    said = asdict(settings) | {"checkpoint_seconds": 0}
    text = json.dumps([dict(config), said], sort_keys=True)
    return hashlib.sha256(text.encode() + sequences.tokens.tobytes()).hexdigest()


def _share_gradient(model: nn.Module) -> Tensor:
    """Make every parameter's gradient a view of one vector, which has one place more at its end."""
    parameters = list(model.parameters())
    gradient = torch.zeros(sum(map(torch.numel, parameters)) + 1, device=parameters[0].device)
    start = 0
    for parameter in parameters:
        parameter.grad = gradient[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return gradient


def learning_rate(settings: TrainingSettings, step: int) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine down to zero."""
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    left = max(0, step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * left))


def language_loss(model: PreTrainedModel, tokens: Tensor, padding: int) -> Tensor:
    """Return the loss of every predicted token that is not padding, as one vector."""
    hidden = model.base_model(tokens).last_hidden_state
    logits = model.get_output_embeddings()(hidden[:, :-1]).flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    losses = F.cross_entropy(logits, targets.masked_fill(targets == padding, _IGNORED), reduction="none")
    return losses[targets != padding].float()


class LoadBalance:
    """Keeps what the routers of the last forward pass did, and says how unevenly."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.seen: dict[int, tuple[Tensor, Tensor]] = {}
        for layer, router in enumerate(routers(model)):
            router.register_forward_hook(self._keeper(layer))

    def _keeper(self, layer: int) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
            self.seen[layer] = (output[0], output[2])

        return keep

    def loss(self) -> Tensor:
        """Return experts x sum over experts of share of tokens x mean probability; 1 is even, mean over layers."""
        return torch.stack([_unevenness(logits, ids) for logits, ids in self.seen.values()]).mean()


def _unevenness(logits_TE: Tensor, expert_ids_TK: Tensor) -> Tensor:
    num_experts = logits_TE.shape[-1]
    probability = logits_TE.float().softmax(dim=-1).mean(dim=0)
    share = torch.bincount(expert_ids_TK.flatten(), minlength=num_experts) / expert_ids_TK.numel()
    return num_experts * (share * probability).sum()


def routers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the router of every layer that has one, first layer first."""
    return [layer.mlp.gate for layer in model.base_model.layers if hasattr(layer.mlp, "gate")]
