"""Made-up routing of one layer: demonstrations of different lengths, tokens in order."""

from __future__ import annotations

import torch

from moe_compress.types import MoELayout, RoutingBatch

EXPERTS, TOP_K = 6, 2
LENGTHS = (5, 9, 1, 4, 7, 3, 8)
LAYOUT = MoELayout((0, 3), (EXPERTS, EXPERTS), TOP_K)


def make_routing(seed: int = 0, experts: int = EXPERTS) -> RoutingBatch:
    """Return what a layer did with all tokens of all demonstrations."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(LENGTHS)
    logits = torch.randn(tokens, experts, generator=generator)
    return RoutingBatch(
        expert_ids_TK=logits.topk(TOP_K).indices,
        gate_weights_TK=torch.rand(tokens, TOP_K, generator=generator),
        output_norms_TK=torch.rand(tokens, TOP_K, generator=generator, dtype=torch.float64) * 3,
        residual_change_T=torch.randn(tokens, generator=generator, dtype=torch.float64) / 4,
        router_logits_TE=logits,
        demonstrations_T=torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)),
    )


def take(batch: RoutingBatch, demonstrations: tuple[int, ...]) -> RoutingBatch:
    """Return the tokens of some demonstrations, in the order given."""
    tokens = torch.cat([(batch.demonstrations_T == number).nonzero().flatten() for number in demonstrations])
    return RoutingBatch(**{name: values[tokens] for name, values in vars(batch).items()})
