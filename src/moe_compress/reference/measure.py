"""Measure a reference model: loss, answers to four-way questions, which experts serve which domain."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from moe_compress.reference.items import NUM_CHOICES, QUESTION_FORMAT
from moe_compress.reference.train import language_loss, routers

_TOKENS_PER_BATCH = 8192
_NORMAL_95 = 1.96
_CHANCE = 1 / NUM_CHOICES


@dataclass(frozen=True)
class Accuracy:
    """How many of how many questions were answered right."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the share."""
        n, p, z = self.total, self.share, _NORMAL_95
        centre, width = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return (centre - width) / (1 + z * z / n), (centre + width) / (1 + z * z / n)

    def as_dict(self) -> dict[str, float]:
        """The counts, the share and its interval, ready for JSON."""
        low, high = self.interval
        return {"right": self.right, "total": self.total, "share": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class Model:
    """A model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast


def heldout_loss(subject: Model, texts: Sequence[str]) -> float:
    """Return the mean loss per token, in nats, each text read by itself."""
    end, padding = subject.tokenizer.eos_token_id, subject.tokenizer.pad_token_id
    longest = subject.model.config.max_position_embeddings
    encoded = [[*ids, end][:longest] for ids in subject.tokenizer(list(texts), verbose=False)["input_ids"]]
    total, count = 0.0, 0
    for rows in _batches(encoded):
        with _reading():
            losses = language_loss(subject.model, _padded([encoded[row] for row in rows], padding), padding)
        total, count = total + float(losses.double().sum()), count + len(losses)
    return total / count


def answers(subject: Model, rows: Sequence[Mapping[str, Any]], with_question: bool = True) -> NDArray[np.int64]:
    """Return the likeliest choice of every question, by the summed log-likelihood of " " and the choice.

    Args:
        subject: Who answers.
        rows: Benchmark rows.
        with_question: False leaves the question out, which shows what the choices alone give away.
    """
    encode = subject.tokenizer.encode
    pairs = []
    for row in rows:
        prompt = encode(QUESTION_FORMAT.format(question=row["question"]) if with_question else "Answer:")
        pairs += [(prompt, encode(f" {choice}")) for choice in row["choices"]]
    scores: NDArray[np.float64] = _likelihoods(subject, pairs).reshape(len(rows), -1)
    return np.asarray(scores.argmax(axis=1), dtype=np.int64)


def _likelihoods(subject: Model, pairs: list[tuple[list[int], list[int]]]) -> NDArray[np.float64]:
    scores = np.zeros(len(pairs))
    longest = subject.model.config.max_position_embeddings
    encoded = [(prompt + choice)[-longest:] for prompt, choice in pairs]
    for rows in _batches(encoded):
        tokens = _padded([encoded[row] for row in rows], subject.tokenizer.pad_token_id)
        with _reading():
            logits = subject.model(tokens).logits[:, :-1].float()
        chosen = -F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
        for row, values in zip(rows, chosen.view(len(rows), -1), strict=True):
            end = len(encoded[row]) - 1
            scores[row] = float(values[end - len(pairs[row][1]) : end].sum())
    return scores


def _batches(encoded: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Yield row numbers, shortest rows first, as many as fit into a batch."""
    order = sorted(range(len(encoded)), key=lambda row: len(encoded[row]))
    while order:
        count = len(order)
        longest = len(encoded[order[-1]])
        count = max(1, min(count, _TOKENS_PER_BATCH // longest))
        yield order[-count:]
        del order[-count:]


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    tokens = torch.full((len(rows), max(map(len, rows))), padding)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    return tokens


@contextmanager
def _reading() -> Iterator[None]:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def accuracy_by_kind(rows: Sequence[Mapping[str, Any]], chosen: NDArray[np.int64]) -> dict[str, Accuracy]:
    """Count right answers per kind of question; key "all" counts every question."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row, choice in zip(rows, chosen, strict=True):
        for kind in ("all", str(row["kind"])):
            right[kind].append(int(choice) == row["answer"])
    return {kind: Accuracy(sum(values), len(values)) for kind, values in right.items()}


def routing_LE(subject: Model, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return, per layer and expert, the summed gate weight of a domain's texts as a share of the layer's sum."""
    routed: list[tuple[Tensor, Tensor]] = []
    handles = [
        router.register_forward_hook(lambda _module, _inputs, output: routed.append(output[1:]))
        for router in routers(subject.model)
    ]
    sums: NDArray[np.float64] = np.zeros((len(handles), subject.model.config.num_experts))
    for text in texts:
        routed.clear()
        with _reading():
            subject.model(torch.tensor([subject.tokenizer.encode(text, truncation=True)]))
        for sums_E, (weights_TK, ids_TK) in zip(sums, routed, strict=True):
            np.add.at(sums_E, ids_TK.flatten().numpy(), weights_TK.flatten().double().numpy())
    for handle in handles:
        handle.remove()
    shares: NDArray[np.float64] = sums / sums.sum(axis=1, keepdims=True)
    return shares


@contextmanager
def only_experts(model: PreTrainedModel, kept_LE: NDArray[np.bool_]) -> Iterator[None]:
    """Let the routers choose among the kept experts alone, as if the others had been cut out."""
    handles = [
        router.register_forward_hook(_chooser(torch.from_numpy(kept_E), model.config.num_experts_per_tok))
        for router, kept_E in zip(routers(model), kept_LE, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _chooser(kept_E: Tensor, top_k: int) -> Any:
    def choose(_module: Any, _inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        logits_TE = output[0].masked_fill(~kept_E, -torch.inf)
        weights, ids = logits_TE.float().softmax(dim=-1).topk(top_k, dim=-1)
        return logits_TE, (weights / weights.sum(dim=-1, keepdim=True)).to(output[1].dtype), ids

    return choose


def best_experts(shares_LE: NDArray[np.float64], num_kept: int) -> NDArray[np.bool_]:
    """Return which experts of each layer are among the `num_kept` of the highest share."""
    rank = np.argsort(np.argsort(-shares_LE, axis=1, kind="stable"), axis=1)
    return rank < num_kept


@dataclass(frozen=True)
class DomainRows:
    """One domain's rows to measure on."""

    domain: str
    benchmark: list[dict[str, Any]]
    heldout: list[str]
    calibration: list[str]


def load_model(folder: Path) -> Model:
    """Load a model folder in float32, as stock transformers does."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return Model(model.eval(), AutoTokenizer.from_pretrained(folder))


def measure(subject: Model, domains: Sequence[DomainRows], seed: int) -> dict[str, Any]:
    """Measure a model on every domain.

    Args:
        subject: The model.
        domains: What to measure on.
        seed: Of the random choice of experts.

    Returns:
        `domains` (loss and accuracies by domain), `routing` (shares `[L][E]` by domain) and `kept` (accuracy with
        some of the experts), ready for JSON.
    """
    routing = {rows.domain: routing_LE(subject, rows.calibration) for rows in domains}
    measured = {rows.domain: _measure_domain(subject, rows) for rows in domains}
    full = {domain: float(row["accuracy"]["all"]["share"]) for domain, row in measured.items()}
    kept = [_measure_kept(subject, domains, choice, full) for choice in _choices(routing, seed)]
    return {
        "domains": measured,
        "routing": {domain: shares_LE.tolist() for domain, shares_LE in routing.items()},
        "kept": kept,
    }


def _measure_domain(subject: Model, rows: DomainRows) -> dict[str, Any]:
    asked = accuracy_by_kind(rows.benchmark, answers(subject, rows.benchmark))
    blind = accuracy_by_kind(rows.benchmark, answers(subject, rows.benchmark, with_question=False))
    return {
        "heldout_loss": heldout_loss(subject, rows.heldout),
        "accuracy": {kind: found.as_dict() for kind, found in asked.items()},
        "choices_alone": blind["all"].as_dict(),
    }


@dataclass(frozen=True)
class _Choice:
    """A title and, for every domain, which experts stay."""

    title: str
    kept: dict[str, NDArray[np.bool_]]


def _choices(routing: Mapping[str, NDArray[np.float64]], seed: int) -> Iterator[_Choice]:
    generator = np.random.default_rng(seed)
    for title, parts in (("half", 2), ("a quarter", 4)):
        number = next(iter(routing.values())).shape[1] // parts
        own = {domain: best_experts(shares_LE, number) for domain, shares_LE in routing.items()}
        chance = best_experts(generator.random(next(iter(routing.values())).shape), number)
        yield _Choice(f"own {title}", own)
        yield _Choice(f"random {title}", dict.fromkeys(own, chance))
        yield _Choice(f"math's {title}", dict.fromkeys(own, own["math"]))


def _measure_kept(
    subject: Model, domains: Sequence[DomainRows], choice: _Choice, full: Mapping[str, float]
) -> dict[str, Any]:
    accuracy = {}
    for rows in domains:
        with only_experts(subject.model, choice.kept[rows.domain]):
            accuracy[rows.domain] = accuracy_by_kind(rows.benchmark, answers(subject, rows.benchmark))["all"].share
    left = {domain: share_left(share, full[domain]) for domain, share in accuracy.items()}
    return {"title": choice.title, "accuracy": accuracy, "left": left}


def share_left(share: float, full: float) -> float:
    """Return how much of the accuracy above chance is left; 0 if there was none."""
    return (share - _CHANCE) / (full - _CHANCE) if full > _CHANCE else 0.0
