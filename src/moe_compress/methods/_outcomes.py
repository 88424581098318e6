"""What a layer would do with other experts picked, from inner products of all experts' outputs alone."""

from __future__ import annotations

from typing import Literal

import torch

from moe_compress.methods._routing import Routing
from moe_compress.types import ExpertProducts

Error = Literal["cosine", "absolute", "relative"]


class Outcomes:
    """The layer's error for cases of a token and what is picked for it, against what the full layer does.

    All in float64, and from differences: `1 - cos` of two nearly equal streams would otherwise drown in rounding.
    """

    def __init__(self, sample: ExpertProducts, routing: Routing, error: Error) -> None:
        self.sample, self.routing, self.error = sample, routing, error
        self.scores_NE = routing.scores(sample.logits_NE)
        there_NE = torch.ones_like(self.scores_NE, dtype=torch.bool)
        gates_NE = torch.zeros_like(self.scores_NE).scatter_(1, *routing.gates(self.scores_NE, there_NE))
        gram_NEE = sample.gram_NEE
        self.output_dot_NE = torch.einsum("nij,nj->ni", gram_NEE, gates_NE.to(gram_NEE.dtype)).double()
        self.stream_dot_NE = sample.stream_dot_NE.double()
        self.output_sq_N = (gates_NE * self.output_dot_NE).sum(dim=1)
        self.stream_output_N = (gates_NE * self.stream_dot_NE).sum(dim=1)
        self.after_sq_N = sample.stream_sq_N.double() + 2 * self.stream_output_N + self.output_sq_N

    def products(self, tokens_P: torch.Tensor, ids_PK: torch.Tensor) -> torch.Tensor:
        """Return what the error of a pick is made of, float64 `[P, 4]`.

        With `v = sum_i s_i e_i` over the picked experts, `s` their scores: `r . v`, `h . v`, `v . v`, `sum_i s_i`.
        """
        scores_PK = self.scores_NE[tokens_P[:, None], ids_PK]
        gram_PKK = self.sample.gram_NEE[tokens_P[:, None, None], ids_PK[:, :, None], ids_PK[:, None, :]].double()
        return torch.stack(
            [
                (scores_PK * self.output_dot_NE[tokens_P[:, None], ids_PK]).sum(dim=1),
                (scores_PK * self.stream_dot_NE[tokens_P[:, None], ids_PK]).sum(dim=1),
                torch.einsum("pi,pij,pj->p", scores_PK, gram_PKK, scores_PK),
                scores_PK.sum(dim=1),
            ],
            dim=1,
        )

    def errors(self, products_NE4: torch.Tensor, there_sum_NE: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the error of each token and case, float64 `[n, E]`.

        Args:
            products_NE4: from `products`, for the tokens `rows`.
            there_sum_NE: sum of the scores of the experts there are in each case.
            rows: the tokens.
        """
        along_r, along_h, squared, picked_sum = products_NE4.unbind(dim=-1)
        factor = self.routing.gate_factor(picked_sum, there_sum_NE)
        output_sq, after_sq = self.output_sq_N[rows, None], self.after_sq_N[rows, None]
        difference_sq = (factor**2 * squared - 2 * factor * along_r + output_sq).clamp(min=0)
        if self.error == "absolute":
            return difference_sq
        if self.error == "relative":
            return difference_sq / after_sq
        # With d = h~' - h~: 1 - cos(h~, h~') = (|d|^2 - (|h~'| - |h~|)^2) / (2 |h~| |h~'|).
        along_after = factor * (along_h + along_r) - self.stream_output_N[rows, None] - output_sq
        length_sq = (after_sq + 2 * along_after + difference_sq).clamp(min=torch.finfo(torch.float64).tiny)
        lengths = after_sq.sqrt(), length_sq.sqrt()
        longer = (2 * along_after + difference_sq) / (lengths[0] + lengths[1])
        return ((difference_sq - longer**2) / (2 * lengths[0] * lengths[1])).clamp(min=0)
