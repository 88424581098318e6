"""Answer the same items for many plans: each question is read once, its choices side by side in one row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from moe_compress.errors import UnsupportedModelError
from moe_compress.evaluation.encoding import EncodedItem, context_length, encode_items
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.types import ItemResult

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKABLE = frozenset({"deepseek_v3", "dots1", "glm4_moe", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"})
"""Families that were tried with an attention mask of our own, the same for every layer."""

_PAD, _CONTEXT = -1, 0


@dataclass(frozen=True)
class _Batch:
    """Questions packed into rows: padding, context, then every choice but its last token.

    Attributes:
        ids_BS: token ids.
        positions_BS: position in the text; every choice goes on from the end of the context.
        segments_BS: -1 padding, 0 context, c choice c-1; a token sees its context and its own segment.
        num_logits: last columns whose logits are needed; the first of them is the context's last token.
        rows_N: row of each predicted token.
        columns_N: column, counted within these last columns, that predicts it.
        targets_N: the token itself.
        slots_N: which choice it belongs to, counted over all items.
    """

    ids_BS: torch.Tensor
    positions_BS: torch.Tensor
    segments_BS: torch.Tensor
    num_logits: int
    rows_N: torch.Tensor
    columns_N: torch.Tensor
    targets_N: torch.Tensor
    slots_N: torch.Tensor


class ChoiceScorer:
    """Tasks tokenised and packed once, to be answered by one model under many masks.

    The log-likelihoods are those of `harness.score_tasks`; only the work shared by a question's choices, and
    by all plans, is done once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tasks: Sequence[BenchmarkTask],
        tokens_per_batch: int = 2048,
    ) -> None:
        """Tokenise and pack the tasks.

        Raises:
            UnsupportedModelError: if the model's family is not one whose attention takes a mask of its own.
            DataError: if an item is longer than the model sees at once.
        """
        if model.config.model_type not in PACKABLE:
            raise UnsupportedModelError(
                f"the choices of a question cannot be packed into one row for '{model.config.model_type}' "
                f"({', '.join(sorted(PACKABLE))} can); write the pruned checkpoint and evaluate that"
            )
        self._model = model
        self._tasks = tuple(tasks)
        items = [item for task in tasks for item in task.items]
        encoded = encode_items(tokenizer, items, _attention_span(model))
        self._starts = [0]
        for item in encoded:
            self._starts.append(self._starts[-1] + len(item.choices))
        self._batches = [_pack(group, self._starts) for group in _groups(encoded, tokens_per_batch)]

    def score(self, other: PreTrainedModel | None = None) -> tuple[ItemResult, ...]:
        """Return every item as the model, masked as it is now, answers it.

        Args:
            other: a model to ask instead, of the same family and with the same tokenizer.

        Raises:
            EvaluationError: if a log-likelihood is not a finite number.
        """
        model = self._model if other is None else other
        totals = torch.zeros(self._starts[-1], dtype=torch.float64)
        with torch.inference_mode():
            for batch in self._batches:
                totals.index_add_(0, batch.slots_N, _log_likelihoods(model, batch))
        answers = (totals[start:end].tolist() for start, end in pairwise(self._starts))
        return tuple(result for task in self._tasks for result in task.results([next(answers) for _ in task.items]))


def _attention_span(model: PreTrainedModel) -> int:
    """Return how far back every layer sees; the packed rows have one mask for all layers."""
    window = getattr(model.config, "sliding_window", None)
    return min(context_length(model), window or context_length(model))


def _log_likelihoods(model: PreTrainedModel, batch: _Batch) -> torch.Tensor:
    """Return the log-likelihood of each predicted token, float64 `[N]`."""
    device = model.device
    logits = model(
        input_ids=batch.ids_BS.to(device),
        position_ids=batch.positions_BS.to(device),
        attention_mask=_attention_mask(batch.segments_BS.to(device), model.dtype),
        use_cache=False,
        logits_to_keep=batch.num_logits,
    ).logits
    rows_N, columns_N = batch.rows_N.to(logits.device), batch.columns_N.to(logits.device)
    log_probabilities = torch.log_softmax(logits[rows_N, columns_N].float(), dim=-1)
    return log_probabilities.gather(1, batch.targets_N.to(logits.device)[:, None])[:, 0].double().cpu()


def _attention_mask(segments_BS: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention scores, `[B, 1, S, S]`: 0 where a query may look, else the lowest."""
    queries, keys = segments_BS[:, :, None], segments_BS[:, None, :]
    width = segments_BS.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments_BS.device).tril()
    seen = causal & ((keys == queries) | (keys == _CONTEXT))
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _groups(items: Sequence[EncodedItem], tokens_per_batch: int) -> Iterator[list[tuple[int, EncodedItem]]]:
    """Yield items of like length together, with their number, until a batch is full."""
    group: list[tuple[int, EncodedItem]] = []
    widest = 0
    for number, item in sorted(enumerate(items), key=lambda pair: _lengths(pair[1])):
        width = len(item.context) + max(widest, _branch_length(item))
        if group and width * (len(group) + 1) > tokens_per_batch:
            yield group
            group, widest = [], 0
        group.append((number, item))
        widest = max(widest, _branch_length(item))
    if group:
        yield group


def _lengths(item: EncodedItem) -> tuple[int, int]:
    return len(item.context), _branch_length(item)


def _branch_length(item: EncodedItem) -> int:
    """Return the tokens of all choices that are read: the last of each is only predicted."""
    return sum(len(choice) - 1 for choice in item.choices)


def _pack(group: list[tuple[int, EncodedItem]], starts: Sequence[int]) -> _Batch:
    """Return the items of a group as one batch; `starts[number]` is the slot of an item's first choice."""
    context = max(len(item.context) for _, item in group)
    branches = max(_branch_length(item) for _, item in group)
    packed = torch.tensor([_pack_row(item, context, branches) for _, item in group])
    predicted = [
        (row, column, token, starts[number] + index)
        for row, (number, item) in enumerate(group)
        for index, (choice, columns) in enumerate(zip(item.choices, _columns(item), strict=True))
        for column, token in zip(columns, choice, strict=True)
    ]
    ids, positions, segments = packed.unbind(1)
    rows, columns, targets, slots = torch.tensor(predicted).T.contiguous()
    return _Batch(ids, positions, segments, branches + 1, rows, columns, targets, slots)


def _pack_row(item: EncodedItem, context: int, branches: int) -> tuple[list[int], list[int], list[int]]:
    """Return an item's token ids, positions and segments; contexts end, and choices begin, in one column."""
    length = len(item.context)
    left, right = [_PAD] * (context - length), [_PAD] * (branches - _branch_length(item))
    ids, positions, segments = list(item.context), list(range(length)), [_CONTEXT] * length
    for index, choice in enumerate(item.choices):
        ids += choice[:-1]
        positions += range(length, length + len(choice) - 1)
        segments += [index + 1] * (len(choice) - 1)
    no_left, no_right = [0] * len(left), [0] * len(right)
    return no_left + ids + no_right, no_left + positions + no_right, left + segments + right


def _columns(item: EncodedItem) -> Iterator[list[int]]:
    """Yield, per choice, the columns that predict its tokens: the context's last, then its own."""
    start = 1
    for choice in item.choices:
        yield [0, *range(start, start + len(choice) - 1)]
        start += len(choice) - 1
