"""Statistics collected only when asked for by name, and what each costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from moe_compress.errors import ParameterError
from moe_compress.types import MoELayout

PER_CHOICE = ("count", "gate", "norm", "gate_norm", "gate_norm_change", "gate_change")
"""Sums over the tokens routed to an expert."""

ALWAYS = (*PER_CHOICE, "router_probability")
"""What every collection has, kept apart by demonstrations; `router_probability` is summed over all tokens."""

ON_REQUEST = {
    "coactivation": "coactivation",
    "elimination_error": "elimination",
    "elimination_rank": "elimination",
    "embedding": "embedding",
    "embedding_tokens": "embedding",
    "logit_gram": "logit_gram",
    "max_gate_norm": "max_gate_norm",
    "max_norm": "max_norm",
    "pooled_gram": "pooled_gram",
    "weight_gram": "weight_gram",
}
"""Statistic -> the request that brings it:

    coactivation      [L, E, E]  tokens for which both experts were picked; a token's own expert on the diagonal
    elimination_error [L, E]     a layer's error with so many experts gone, as the method reduced its sample
    elimination_rank  [L, E]     when each expert went; neither adds over processes
    embedding         [L, E, D]  each expert's output summed over the same sample of tokens, routed to it or not
    embedding_tokens  [L, E]     tokens of that sample
    logit_gram        [L, E, E]  products of two experts' router logits summed over all tokens
    max_norm          [L, E]     largest output norm of the tokens routed to an expert
    max_gate_norm     [L, E]     largest gate weight times output norm
    pooled_gram       [L, E, batches, L, E]  products of two experts' outputs on demonstrations' mean inputs, summed
                                 over each batch of 32 demonstrations
    weight_gram       [L, E, E]  inner products of the experts' weights; each process adds them once
"""

MAXIMA = ("max_gate_norm", "max_norm")
"""Those that are the largest value seen, not a sum."""

AT_ONCE = 1 << 28
"""Numbers of all experts' outputs that `elimination` holds at once."""

_ROUTED_AT_ONCE = 1 << 25
"""Tokens, times cases, times experts, that an elimination routes anew at once."""

TOGETHER = 32
"""Demonstrations of a batch of `pooled_gram`, in the order given, as in the published runs of C-Prune."""


def resolve_requests(*asked: Iterable[str]) -> tuple[str, ...]:
    """Return the requests that bring all statistics asked for, sorted, without what every collection has.

    Raises:
        ParameterError: if there is no such statistic.
    """
    names = {name for group in asked for name in group} - set(ALWAYS)
    for name in sorted(names - set(ON_REQUEST)):
        known = sorted({*ALWAYS, *ON_REQUEST})
        close = get_close_matches(name, known, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ParameterError(
            f"no statistic '{name}' can be collected{hint}; use {', '.join(known)} (collect.statistics)"
        )
    return tuple(sorted({ON_REQUEST[name] for name in names}))


@dataclass(frozen=True)
class CollectedShape:
    """What the cost of a request depends on.

    Attributes:
        layout: the model's layout.
        hidden_size: D.
        expert_parameters: parameters of one routed expert.
        num_tokens: tokens that will be collected.
        embedding_tokens: tokens of the sample that all experts run on.
        resident_layers: layers in memory at once: 1 when streamed, all when the model is loaded whole.
        num_demonstrations: demonstrations of the domain.
    """

    layout: MoELayout
    hidden_size: int
    expert_parameters: int
    num_tokens: int
    embedding_tokens: int
    resident_layers: int = 1
    num_demonstrations: int = 0


@dataclass(frozen=True)
class RequestCost:
    """What one request adds to a collection.

    Attributes:
        device_bytes: held on the device at most, besides the kernels' own room.
        file_bytes: in host memory at the end, and in the file.
        flops: floating-point operations over the whole model.
    """

    device_bytes: int
    file_bytes: int
    flops: int


def cost_of(request: str, shape: CollectedShape) -> RequestCost:
    """Return what one of the requests of `resolve_requests` adds."""
    experts, layers, hidden = max(shape.layout.num_experts), len(shape.layout.layers), shape.hidden_size
    if request == "embedding":
        tokens = min(shape.embedding_tokens, shape.num_tokens)
        sums = 8 * experts * (hidden + 1)
        # The sample's hidden states in at most float32, one expert's outputs and their float64 copy.
        working = 4 * tokens * hidden * shape.resident_layers + 12 * tokens * hidden
        flops = 2 * shape.expert_parameters * tokens * sum(shape.layout.num_experts)
        return RequestCost(working + sums * shape.resident_layers, sums * layers, flops)
    if request == "elimination":
        return _cost_of_elimination(shape)
    if request == "pooled_gram":
        return _cost_of_pooling(shape)
    if request in MAXIMA:
        sums, flops = 8 * experts, shape.num_tokens * shape.layout.top_k * layers
        return RequestCost(sums * shape.resident_layers, sums * layers, flops)
    sums = 8 * experts * experts
    terms = shape.expert_parameters if request == "weight_gram" else shape.num_tokens
    flops = 2 * terms * sum(count * count for count in shape.layout.num_experts)
    return RequestCost(sums * shape.resident_layers, sums * layers, flops)


def _cost_of_elimination(shape: CollectedShape) -> RequestCost:
    """Return what running all experts on the sample, their inner products and the elimination take."""
    experts, hidden, top_k = max(shape.layout.num_experts), shape.hidden_size, shape.layout.top_k
    tokens = min(shape.embedding_tokens, shape.num_tokens)
    # Inputs, stream and what is added, in at most float32; logits and gate weights.
    gathered = 4 * tokens * (3 * hidden + 2 * experts) * shape.resident_layers
    outputs = 3 * 4 * max(min(AT_ONCE, tokens * experts * hidden), experts * hidden)
    # Both the parts and the whole while they are joined; then what every candidate would do to every token.
    products = 2 * 4 * tokens * experts * experts
    candidates = 100 * tokens * experts + 40 * min(_ROUTED_AT_ONCE, tokens * experts * experts)
    every = sum(shape.layout.num_experts)
    running = 2 * shape.expert_parameters * tokens * every
    multiplying = 2 * tokens * hidden * sum(count * count for count in shape.layout.num_experts)
    routing = 8 * tokens * top_k * top_k * experts * every
    sums = 16 * experts
    device = gathered + max(outputs + products, products + candidates) + sums * shape.resident_layers
    return RequestCost(device, sums * len(shape.layout.layers), running + multiplying + routing)


def _cost_of_pooling(shape: CollectedShape) -> RequestCost:
    """Return what all experts' outputs on the demonstrations' means take, held until the last layer's are there."""
    samples, hidden, every = shape.num_demonstrations, shape.hidden_size, sum(shape.layout.num_experts)
    rows = len(shape.layout.layers) * max(shape.layout.num_experts)
    held = 4 * samples * hidden * (every + shape.resident_layers)
    gram = 8 * -(-samples // TOGETHER) * rows * rows
    flops = 2 * samples * every * (shape.expert_parameters + hidden * every)
    return RequestCost(held + gram, gram, flops)
