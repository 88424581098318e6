"""Greedy elimination: remove the expert whose absence, once its tokens are routed anew, harms the layer least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from moe_compress.errors import ParameterError
from moe_compress.methods._outcomes import Error, Outcomes
from moe_compress.methods._routing import Routing
from moe_compress.types import ExpertProducts, FloatArray

MAX_CELLS = 1 << 25
"""Cases times experts that are routed anew at once; bounds the memory of a large layer's first round."""


@dataclass(frozen=True)
class Elimination:
    """In what order a layer's experts go, and what that costs.

    Attributes:
        removed: experts in the order they go; those never removed are not in it.
        errors: mean error over tokens after each removal, float64, as long as `removed`.
    """

    removed: tuple[int, ...]
    errors: tuple[float, ...]

    def ranks(self, num_experts: int) -> FloatArray:
        """Return when each expert went, float64 `[E]`; those that stayed share the highest number."""
        rank_E = np.full(num_experts, float(len(self.removed)))
        rank_E[list(self.removed)] = np.arange(len(self.removed))
        return rank_E

    def curve(self, num_experts: int) -> FloatArray:
        """Return the error with `d` experts gone at position `d`, float64 `[E]`; the last one goes on."""
        errors = [0.0, *self.errors]
        return np.array([errors[min(gone, len(self.errors))] for gone in range(num_experts)])

    def as_statistics(self, num_experts: int) -> dict[str, torch.Tensor]:
        """Return both as the statistics of a layer."""
        ranks_E, curve_E = self.ranks(num_experts), self.curve(num_experts)
        return {"elimination_rank": torch.from_numpy(ranks_E), "elimination_error": torch.from_numpy(curve_E)}


def eliminate(
    sample: ExpertProducts, routing: Routing, error: Error = "cosine", fewest: int | None = None, seed: int = 0
) -> Elimination:
    """Return the order in which experts go until `fewest` are left.

    A token's error is looked at anew only when an expert goes that its picks, or its picks without one more
    expert, depend on. A router with groups loses an expert of each in turn, so that they stay equally large.

    Args:
        sample: the layer's tokens.
        routing: the family's rules.
        error: what is kept small, mean over tokens: `cosine`, `1 - cos` of the stream after the layer; `absolute`,
            the squared change of the routed output; `relative`, that over the squared stream after the layer.
        fewest: when to stop; by default the fewest the router works with.
        seed: orders experts whose removal harms the same.

    Raises:
        ParameterError: if the router does not work with that few.
    """
    fewest = routing.fewest if fewest is None else fewest
    if fewest < routing.fewest:
        raise ParameterError(
            f"elimination is to stop at {fewest} experts, but the router needs {routing.fewest}; stop there"
        )
    candidates = _Candidates(sample, routing, error)
    num_experts = sample.logits_NE.shape[1]
    draw = np.random.default_rng(seed).permutation(num_experts)
    order_E = torch.as_tensor(draw, device=sample.logits_NE.device)
    removed, errors = [], []
    for _ in range(num_experts - fewest):
        harm_E = candidates.harm()
        best = order_E[harm_E[order_E].argmin()]  # the first of equals, in the order drawn
        candidates.remove(best)
        removed.append(best)
        errors.append(harm_E[best])
    if not removed:
        return Elimination((), ())
    return Elimination(tuple(torch.stack(removed).tolist()), tuple(torch.stack(errors).tolist()))


class _Candidates:
    """For every expert that is left, what the layer would do without it.

    Attributes:
        there_E: which experts are left.
        products_NE4: what the errors without each expert are made of.
        depends_NE: whose removal makes a token's row stale.
    """

    def __init__(self, sample: ExpertProducts, routing: Routing, error: Error) -> None:
        self.routing, self.outcomes = routing, Outcomes(sample, routing, error)
        self.scores_NE = self.outcomes.scores_NE
        tokens, experts = self.scores_NE.shape
        device = self.scores_NE.device
        self.there_E = torch.ones(experts, dtype=torch.bool, device=device)
        self.products_NE4 = torch.zeros(tokens, experts, 4, dtype=torch.float64, device=device)
        self.depends_NE = torch.zeros(tokens, experts, dtype=torch.bool, device=device)
        self.errors_NE = torch.zeros(tokens, experts, dtype=torch.float64, device=device)
        self._refresh(torch.arange(tokens, device=device))

    def harm(self) -> torch.Tensor:
        """Return the mean error without each expert, `[E]`; infinite for those that cannot go now."""
        return self.errors_NE.mean(dim=0).masked_fill(~self._may_go(), torch.inf)

    def _may_go(self) -> torch.Tensor:
        there_GS = self.there_E.view(self.routing.num_groups, -1)
        left_G = there_GS.sum(dim=1)
        return (there_GS & (left_G == left_G.max())[:, None]).view(-1)

    def remove(self, expert: torch.Tensor) -> None:
        """Take one expert out."""
        self.there_E[expert] = False
        self._refresh(self.depends_NE[:, expert].nonzero()[:, 0])

    def _refresh(self, rows: torch.Tensor) -> None:
        """Route the tokens of `rows` anew, as things are and without one more expert, and take their errors."""
        experts = len(self.there_E)
        per_token = (self.routing.top_k + 2 * self.routing.num_groups) * experts
        if self.routing.bias_E is not None and self.routing.scoring == "softmax":
            per_token = experts * experts
        for part in torch.split(rows, max(1, MAX_CELLS // per_token)):
            self._route(part)
        changed = torch.arange(len(self.scores_NE), device=rows.device) if self.routing.counts_absent else rows
        rest_NE = _sum_of_others(self.scores_NE[changed] * self.there_E)
        self.errors_NE[changed] = self.outcomes.errors(self.products_NE4[changed], rest_NE, changed)

    def _route(self, rows: torch.Tensor) -> None:
        scores_nE = self.scores_NE[rows]
        ids_nK, matter_nM = self.routing.choose(scores_nE, self.there_E.expand_as(scores_nE))
        self.products_NE4[rows] = self.outcomes.products(rows, ids_nK)[:, None, :].expand(-1, len(self.there_E), -1)
        # One case for each expert that matters to a token: what the router does without it.
        cases, count = rows.repeat_interleave(matter_nM.shape[1]), matter_nM.numel()
        gone_P = matter_nM.reshape(-1)
        there_PE = self.there_E.repeat(count, 1)
        there_PE[torch.arange(count, device=rows.device), gone_P] = False
        ids_PK, matter_PM = self.routing.choose(self.scores_NE[cases], there_PE)
        self.products_NE4[cases, gone_P] = self.outcomes.products(cases, ids_PK)
        self.depends_NE[rows] = False
        self.depends_NE[rows[:, None], matter_nM] = True
        self.depends_NE[cases[:, None], matter_PM] = True


def _sum_of_others(values_NE: torch.Tensor) -> torch.Tensor:
    """Return each row's sum without each of its values; exact also where one value is nearly all of the sum."""
    largest_N1, where_N1 = values_NE.max(dim=1, keepdim=True)
    small_NE = values_NE.scatter(1, where_N1, 0.0)
    small_N1 = small_NE.sum(dim=1, keepdim=True)
    return (small_N1 - small_NE + largest_N1).scatter(1, where_N1, small_N1)
