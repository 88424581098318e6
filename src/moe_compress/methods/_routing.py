"""What a router does when some of its experts are gone: masked choice, then gate weights as its family has them."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch

from moe_compress.errors import ParameterError


@dataclass(frozen=True)
class Routing:
    """A family's rules from router logits to experts and gate weights.

    Attributes:
        top_k: experts picked per token.
        scoring: `softmax` over the experts there are, or `sigmoid` of each.
        normalise: whether the picked experts' scores are divided by their sum.
        scaling: a factor on the gate weights.
        bias_E: correction bias, added to the scores for the choice only.
        num_groups: equal groups of experts by position; 1 for none.
        topk_groups: groups a token may use.
        group_score: how a group is ranked: by its best two scores added, or its best.
    """

    top_k: int
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    normalise: bool = True
    scaling: float = 1.0
    bias_E: torch.Tensor | None = None
    num_groups: int = 1
    topk_groups: int = 1
    group_score: Literal["top2", "max"] = "top2"

    def __post_init__(self) -> None:
        if self.scoring not in ("softmax", "sigmoid") or self.group_score not in ("top2", "max"):
            raise ParameterError(
                f"a router with scoring '{self.scoring}' and group_score '{self.group_score}' is not known; give "
                "softmax or sigmoid, and top2 or max"
            )

    @property
    def counts_absent(self) -> bool:
        """Whether an expert's gate weight depends on which others there are, also those not picked."""
        return self.scoring == "softmax" and not self.normalise

    @property
    def fewest(self) -> int:
        """The fewest experts it works with, the same number in each group."""
        if self.num_groups == 1:
            return self.top_k
        ranked = 2 if self.group_score == "top2" else 1
        return self.num_groups * max(ranked, -(-self.top_k // self.topk_groups))

    def scores(self, logits_NE: torch.Tensor) -> torch.Tensor:
        """Return scores before any division, float64 `[N, E]`: what is left of the experts changes none of them."""
        logits_NE = logits_NE.double()
        if self.scoring == "sigmoid":
            return logits_NE.sigmoid()
        return (logits_NE - logits_NE.amax(dim=1, keepdim=True)).exp()

    def choose(self, scores_PE: torch.Tensor, there_PE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what is picked, `[P, K]`, and the experts whose absence could change that, `[P, M]`.

        Args:
            scores_PE: from `scores`, a row per case.
            there_PE: which experts there are, bool.
        """
        values_PE = scores_PE
        if self.bias_E is not None:
            if self.scoring == "softmax":
                values_PE = values_PE / (values_PE * there_PE).sum(dim=1, keepdim=True)
            values_PE = values_PE + self.bias_E
        values_PE = values_PE.masked_fill(~there_PE, -inf)
        values_PE, ranked_PM = self._limit_groups(values_PE)
        ids_PK = values_PE.topk(self.top_k, dim=1).indices
        if self.bias_E is not None and self.scoring == "softmax":
            # Any expert's absence raises all probabilities against the bias.
            every_E = torch.arange(scores_PE.shape[1], device=scores_PE.device)
            return ids_PK, every_E.expand(len(scores_PE), -1)
        return ids_PK, torch.cat([ids_PK, ranked_PM], dim=1)

    def _limit_groups(self, values_PE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the values of the groups a token may use, -inf elsewhere, and the experts that ranked groups."""
        cases, experts = values_PE.shape
        if self.num_groups == 1:
            return values_PE, torch.empty(cases, 0, dtype=torch.long, device=values_PE.device)
        size = experts // self.num_groups
        blocks_PGS = values_PE.view(cases, self.num_groups, size)
        best = blocks_PGS.topk(min(size, 2 if self.group_score == "top2" else 1), dim=2)
        used_PG = torch.zeros(cases, self.num_groups, dtype=torch.bool, device=values_PE.device)
        used_PG.scatter_(1, best.values.sum(dim=2).topk(self.topk_groups, dim=1).indices, True)
        first_G = torch.arange(self.num_groups, device=values_PE.device)[:, None] * size
        limited = blocks_PGS.masked_fill(~used_PG[:, :, None], -inf).view(cases, experts)
        return limited, (best.indices + first_G).flatten(1)

    def gates(self, scores_PE: torch.Tensor, there_PE: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the picked experts and the factors their outputs are multiplied with, `[P, K]` each."""
        ids_PK, _ = self.choose(scores_PE, there_PE)
        picked_PK = scores_PE.gather(1, ids_PK)
        factor_P = self.gate_factor(picked_PK.sum(dim=1), (scores_PE * there_PE).sum(dim=1))
        return ids_PK, picked_PK * factor_P[:, None]

    def gate_factor(self, picked_sum: torch.Tensor, there_sum: torch.Tensor) -> torch.Tensor:
        """Return what scores are multiplied with to become gate weights.

        Args:
            picked_sum: sum of the picked experts' scores.
            there_sum: sum of the scores of all experts there are.
        """
        if self.normalise:
            return self.scaling / picked_sum
        if self.scoring == "softmax":
            return self.scaling / there_sum
        return torch.full_like(picked_sum, self.scaling)
