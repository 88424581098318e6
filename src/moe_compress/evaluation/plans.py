"""Measure many plans on the same items and texts, prepared once: under a router mask, or as models of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from math import nan
from typing import TYPE_CHECKING

import torch

from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.fast_choice import ChoiceScorer
from moe_compress.evaluation.masked import mask_experts
from moe_compress.evaluation.perplexity import measure_perplexities
from moe_compress.evaluation.tasks import BenchmarkTask
from moe_compress.types import Measurement

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Kept = Sequence[Sequence[int]]


class PlanScorer:
    """A domain's items and held-out texts, and what the base model makes of them, for any number of plans.

    Args:
        base: the base model, of a family whose choices can be packed.
        tokenizer: its tokenizer.
        task: the domain's benchmark.
        texts: the domain's held-out texts; none leave perplexity and KL unmeasured.
    """

    def __init__(
        self, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: BenchmarkTask, texts: Sequence[str]
    ) -> None:
        self._base, self._tokenizer = base, tokenizer
        self._heldout: Mapping[str, Sequence[str]] = {task.name: texts} if texts else {}
        self._choices = ChoiceScorer(base, tokenizer, [task])
        self._predictions = BasePredictions(base, tokenizer, self._heldout)

    def measure_masked(self, kept: Kept | None, num_parameters: int) -> Measurement:
        """Return what is kept when the base's routers go to some experts only, which equals removing the others.

        Args:
            kept: per layer, the experts to keep; None measures the base as it is.
            num_parameters: of the model once they are removed.

        Raises:
            UnsupportedModelError: if masking is not known to equal removal for the model's family.
            PlanError: if the plan does not fit the model.
        """
        with mask_experts(self._base, kept) if kept is not None else nullcontext():
            return self.measure_model(self._base, num_parameters)

    @torch.inference_mode()
    def measure_model(self, model: PreTrainedModel, num_parameters: int) -> Measurement:
        """Return what a model keeps, one that shares the base's tokenizer.

        Raises:
            EvaluationError: if it answers with NaN.
        """
        perplexities = measure_perplexities(model, self._tokenizer, self._heldout)
        divergences = self._predictions.compare(model)
        return Measurement(
            right=tuple(item.is_correct for item in self._choices.score(model)),
            perplexity=next(iter(perplexities.values()), nan),
            kl=next((divergence.kl for divergence in divergences.values()), nan),
            num_parameters=num_parameters,
        )
