"""Stage 3b, refine: better the chosen plan by swaps on the base model; nothing is loaded unless asked for."""

from __future__ import annotations

from pathlib import Path

from kedro.pipeline import Node, Pipeline

from moe_compress.pipelines.digests import source
from moe_compress.pipelines.parameters import DomainParameters, EvaluateParameters, SelectParameters
from moe_compress.types import CheckpointReference, CompressionPlan, Demonstrations, as_json, digest_of


def refine_plan(
    plan: CompressionPlan,
    base_model: CheckpointReference,
    demonstrations: Demonstrations,
    domains_folder: Path,
    refine_folder: Path,
    shared: SelectParameters,
    evaluate: EvaluateParameters,
    own: DomainParameters,
) -> CompressionPlan:
    """Return the plan, bettered by as many swaps as `select.refine` asks for; with 0 it is the plan itself.

    The text is the domain's demonstrations and, where there is one, its `calibration.jsonl`.

    Raises:
        PlanError: if the plan merges, or gives up its router's groups.
        UnsupportedModelError: if the family's experts cannot be masked.
    """
    chosen = own.selection(shared)
    refine = chosen.refine
    if refine.swaps == 0:
        return plan
    from moe_compress.evaluation.heldout import read_texts, take_tokens
    from moe_compress.evaluation.loading import load_stock
    from moe_compress.evaluation.masked import check_plan
    from moe_compress.evaluation.swaps import refine_by_swaps

    check_plan(plan)
    file = domains_folder / own.name / "calibration.jsonl"
    texts = [*demonstrations.texts, *(read_texts(file, None, chosen.seed) if file.is_file() else ())]
    stock = load_stock(base_model.path, evaluate.device, evaluate.dtype)
    texts = take_tokens(stock.tokenizer, texts, refine.tokens, chosen.seed)
    way = str(stock.model.dtype), str(stock.model.device)
    key = find_record_key(plan, base_model.identity, texts, chosen.seed, *way)
    return refine_by_swaps(
        stock.model,
        stock.tokenizer,
        texts,
        plan,
        swaps=refine.swaps,
        seconds=refine.seconds,
        seed=chosen.seed,
        record=refine_folder / f"{key[:16]}.json",
    )


def find_record_key(plan: CompressionPlan, *measured_on: object) -> str:
    """Return a key of all that measured swaps depend on; the plan's scores order them."""
    code = source("evaluation", "families", "loading.py")
    return digest_of([plan.digest, as_json(plan.scores), code, *measured_on])


def create_pipeline() -> Pipeline:
    """Return the stage: chosen plan -> plan."""
    return Pipeline(
        [
            Node(
                refine_plan,
                [
                    "chosen_plan",
                    "base_model",
                    "demonstrations",
                    "domains_folder",
                    "refine_folder",
                    "params:select",
                    "params:evaluate",
                    "params:domain",
                ],
                "plan",
                name="refine_plan",
            )
        ]
    )
