"""Set a candidate beside its base where no question is asked: predictions, routing, router rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from moe_compress.errors import NotFiniteError, UnsupportedModelError
from moe_compress.evaluation.divergence import BasePredictions
from moe_compress.evaluation.loading import load_stock, release_memory
from moe_compress.evaluation.masked import find_owners
from moe_compress.evaluation.routing import LayerRouting, measure_balance, measure_drift, observe_routing
from moe_compress.types import CompressionPlan, LayerProbe, ProbeResult, iterate_layers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Rows = list[dict[str, torch.Tensor]]
"""Per layer with experts, the router's tensors that have a row per expert, by name."""


@dataclass(frozen=True)
class _Base:
    """What is kept of the base once it is unloaded.

    Attributes:
        predictions: for held-out texts of all domains.
        routing: of the texts compressed for, or why it cannot be observed.
        rows: the routers' rows.
    """

    predictions: BasePredictions
    routing: tuple[LayerRouting, ...] | str
    rows: Rows


def probe(
    base: Path,
    candidate: Path,
    plan: CompressionPlan,
    heldout: Mapping[str, Sequence[str]],
    domains: Sequence[str],
    *,
    rewritten: Path | None = None,
    device: str = "auto",
    dtype: str = "float32",
) -> ProbeResult:
    """Return how a written candidate differs from its base; only one of them is loaded at a time.

    Args:
        base: the base checkpoint's folder.
        candidate: the compressed checkpoint's folder.
        plan: what was done to the base.
        heldout: domain -> held-out texts.
        domains: those compressed for, whose texts routing is observed on, if they have some.
        rewritten: the candidate before it was tuned, whose router rows are the base's; None for one that was not.
        device: see `load_stock`.
        dtype: see `load_stock`.

    Raises:
        NotFiniteError: if the base predicts what is no finite number.
    """
    texts = [text for domain in domains for text in heldout.get(domain, ())]
    kept = _read_base(base, heldout, texts, device, dtype)
    rows = None if rewritten is None else router_rows(load_stock(rewritten, device, dtype).model)
    stock = load_stock(candidate, device, dtype)
    try:
        found = kept.predictions.compare(stock.model)
    except NotFiniteError as error:
        return ProbeResult(fault=str(error))
    after = _observe(stock.model, stock.tokenizer, texts)
    told = [why for why in (kept.routing, after) if isinstance(why, str)]
    return ProbeResult(
        kl={name: each.kl for name, each in found.items()},
        agreement={name: each.agreement for name, each in found.items()},
        layers=() if told else _describe_layers(kept.routing, after, plan),
        changed_rows=find_changed_rows(kept.rows, rows or router_rows(stock.model), plan),
        left_out=told[0] if told else "",
    )


def _read_base(
    folder: Path, heldout: Mapping[str, Sequence[str]], texts: Sequence[str], device: str, dtype: str
) -> _Base:
    """Return what is kept of the base; the model itself is gone afterwards."""
    stock = load_stock(folder, device, dtype)
    kept = _Base(
        BasePredictions(stock.model, stock.tokenizer, heldout),
        _observe(stock.model, stock.tokenizer, texts),
        router_rows(stock.model),
    )
    del stock
    release_memory()
    return kept


def _observe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[LayerRouting, ...] | str:
    """Return routing, or why it cannot be observed."""
    if not texts:
        return "the domain has no held-out texts to observe routing on"
    try:
        return observe_routing(model, tokenizer, texts)
    except UnsupportedModelError as error:
        return str(error)


def _describe_layers(before: Any, after: Any, plan: CompressionPlan) -> tuple[LayerProbe, ...]:
    drifts = measure_drift(before, plan.kept)
    balances = measure_balance(after, [range(len(layer.picked)) for layer in after])
    evenness = measure_balance(before, [range(len(layer.picked)) for layer in before])
    return tuple(
        LayerProbe(layer, drift.first, drift.weight, balance.variation, balance.peak, base.variation)
        for layer, drift, balance, base in zip(plan.layout.layers, drifts, balances, evenness, strict=True)
    )


def router_rows(model: PreTrainedModel) -> Rows:
    """Return copies of the routers' tensors with a row per expert, layer by layer, on the CPU."""
    found = []
    for owner in find_owners(model):
        router = owner.gate if hasattr(owner, "gate") else getattr(owner, "router", None)
        tensors = {} if router is None else {**dict(router.named_parameters()), **dict(router.named_buffers())}
        found.append(
            {
                name: tensor.detach().cpu().clone()
                for name, tensor in tensors.items()
                if tensor.ndim and len(tensor) == owner.experts.num_experts
            }
        )
    return found


def find_changed_rows(before: Rows, after: Rows, plan: CompressionPlan) -> tuple[str, ...] | None:
    """Return where a router's row for an expert that was not merged differs from the base's row for it.

    None where the routers have no such rows, so that nothing can be told.
    """
    if len(before) != len(plan.layout.layers) or len(after) != len(before) or not all(before):
        return None
    places = []
    for (layer, groups), old, new in zip(iterate_layers(plan), before, after, strict=True):
        for position, group in enumerate(groups):
            if len(group.members) > 1:
                continue
            member = group.members[0]
            if any(name not in new or not torch.equal(new[name][position], old[name][member]) for name in old):
                places.append(f"layer {layer} expert {position}, which was expert {member}")
    return tuple(places)
