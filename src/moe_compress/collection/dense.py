"""The dense sample: every expert of a layer run on the same few tokens, routed to it or not.

Which tokens are in it follows from a seed and the demonstrations' lengths alone, so that batches, ranks and
shards choose the same. A layer's inputs are gathered as its batches pass; its experts run once, one at a time,
when all have passed, so that each weight is read once and one expert's outputs are all that is held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from inspect import signature

import numpy as np
import torch

from moe_compress.collection.batches import Batch
from moe_compress.errors import UnsupportedModelError
from moe_compress.types import RoutingBatch

Forward = Callable[..., torch.Tensor]
"""How a layer's experts run: `(inputs [N, D], expert ids [N, K], gate weights [N, K]) -> [N, D]`."""

_SEED = 42


def lengths_of(batches: Iterable[Batch]) -> list[int]:
    """Return the number of tokens of each of a domain's demonstrations, from all of its batches."""
    lengths: dict[int, int] = {}
    for batch in batches:
        lengths |= zip(batch.demonstrations_B.tolist(), batch.mask_BS.sum(dim=1).tolist(), strict=True)
    return [lengths[demonstration] for demonstration in sorted(lengths)]


def choose_sample(lengths: Sequence[int], num_tokens: int) -> torch.Tensor:
    """Return each token's place in a sample drawn without replacement, int32 `[demonstrations, longest]`.

    Places count from 0 in the order of demonstrations and positions; tokens not in the sample have -1.

    Args:
        lengths: tokens of each demonstration.
        num_tokens: tokens to draw; all, if there are fewer.
    """
    total = sum(lengths)
    drawn = np.random.default_rng([_SEED, total]).permutation(total)[:num_tokens]
    is_token_NS = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
    place_T = np.full(total, -1)
    place_T[np.sort(drawn)] = np.arange(len(drawn))
    places_NS = np.full(is_token_NS.shape, -1, dtype=np.int32)
    places_NS[is_token_NS] = place_T
    return torch.from_numpy(places_NS)


def positions_of(demonstrations_T: torch.Tensor) -> torch.Tensor:
    """Return each token's position in its demonstration, whose tokens stand together and from the first on."""
    index_T = torch.arange(len(demonstrations_T), device=demonstrations_T.device)
    is_first_T = torch.ones_like(demonstrations_T, dtype=torch.bool)
    is_first_T[1:] = demonstrations_T[1:] != demonstrations_T[:-1]
    return index_T - (index_T * is_first_T).cummax(dim=0).values


class TokenSample:
    """Which tokens of a domain are in a sample, and where each stands in it.

    Attributes:
        num_tokens: tokens in the sample, in all demonstrations together.
    """

    def __init__(self, lengths: Sequence[int], num_tokens: int) -> None:
        self._places_NS = choose_sample(lengths, num_tokens)
        self.num_tokens = min(num_tokens, sum(lengths))

    def find(self, batch: RoutingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the places in the sample of those of a batch's tokens that are in it, and which they are."""
        device = batch.demonstrations_T.device
        if self._places_NS.device != device:
            self._places_NS = self._places_NS.to(device)
        place_T = self._places_NS[batch.demonstrations_T, positions_of(batch.demonstrations_T)].long()
        token_S = (place_T >= 0).nonzero()[:, 0]
        return place_T[token_S], token_S


class DenseSample:
    """Gathers what enters each layer's experts at the sampled tokens, then runs every expert on all of it."""

    def __init__(self, lengths: Sequence[int], num_tokens: int) -> None:
        self.tokens = TokenSample(lengths, num_tokens)
        self._forwards: dict[int, Forward] = {}
        self._inputs: dict[int, torch.Tensor] = {}
        self._arrived: dict[int, torch.Tensor] = {}

    @property
    def rows(self) -> tuple[int, ...]:
        """The layers gathered and not yet finished."""
        return tuple(self._inputs)

    def add(self, row: int, forward: Forward, inputs_TD: torch.Tensor, batch: RoutingBatch) -> None:
        """Keep the sampled tokens of one layer's batch.

        Args:
            row: the layer's position among those with routed experts.
            forward: runs its routed experts.
            inputs_TD: what entered them, padding removed.
            batch: tells which token is which.

        Raises:
            UnsupportedModelError: if the family's experts cannot be run one by one.
        """
        if row not in self._inputs:
            check_runs_single_experts(forward)
            self._forwards[row] = forward
            self._inputs[row] = inputs_TD.new_zeros(self.tokens.num_tokens, inputs_TD.shape[1])
            self._arrived[row] = torch.zeros(self.tokens.num_tokens, dtype=torch.bool, device=inputs_TD.device)
        place_S, token_S = self.tokens.find(batch)
        self._inputs[row][place_S] = inputs_TD[token_S]
        self._arrived[row][place_S] = True

    def finish(self, row: int, num_experts: int) -> dict[str, torch.Tensor]:
        """Return the layer's `embedding` `[E, D]` and `embedding_tokens` `[E]`, float64, and let go of the layer.

        C-Prune, equation 4: `phi(f_i)` is `embedding` over `embedding_tokens`. Tokens are taken in the order of
        their demonstrations, whatever batches they came in.

        Args:
            row: the layer's position among those with routed experts.
            num_experts: E.
        """
        forward, inputs_ND, arrived_N = self._forwards.pop(row), self._inputs.pop(row), self._arrived.pop(row)
        tokens_E = arrived_N.sum().double().expand(num_experts).clone()
        embedding_ED = torch.zeros(num_experts, inputs_ND.shape[1], dtype=torch.float64, device=inputs_ND.device)
        arrived_S = arrived_N.nonzero()[:, 0]  # found once: a mask would make a GPU wait at every expert
        if len(arrived_S):  # a process may have no token of the sample
            for expert in range(num_experts):
                # Tokens of other ranks stay in as zeros: a product of another shape would round these otherwise.
                outputs_ND = run_expert(forward, expert, inputs_ND)
                embedding_ED[expert] = outputs_ND[arrived_S].sum(dim=0, dtype=torch.float64)
        return {"embedding": embedding_ED, "embedding_tokens": tokens_E}


def check_runs_single_experts(forward: Forward) -> None:
    """Check that tokens can be sent to experts of our choice.

    Raises:
        UnsupportedModelError: if experts read every token, already weighted, as Llama 4's do.
    """
    if len(signature(forward).parameters) < 3:
        raise UnsupportedModelError(
            "this family's experts are not handed the choice of experts, so they cannot all run on one sample; "
            "choose a method that does not need it (select.method, collect.statistics)"
        )


def run_expert(forward: Forward, expert: int, inputs_ND: torch.Tensor) -> torch.Tensor:
    """Return one expert's outputs `[N, D]`, before any gate weight."""
    chosen_N1 = torch.full((len(inputs_ND), 1), expert, device=inputs_ND.device)
    outputs = forward(inputs_ND, chosen_N1, torch.ones_like(chosen_N1, dtype=inputs_ND.dtype))
    return outputs.reshape(inputs_ND.shape)
