"""Which parameters of a model are trained: its routers', experts' or attention's, or all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.derive import find_routed_parameters
from moe_compress.families.quantised import find_settings
from moe_compress.tuning.settings import TuneSettings


def refuse_quantised(config: Mapping[str, Any]) -> None:
    """Check that a checkpoint's weights can be trained.

    Raises:
        UnsupportedModelError: if its `config.json` says that they are quantised.
    """
    if method := find_settings(config).get("quant_method"):
        raise UnsupportedModelError(
            f"the pruned checkpoint's weights are quantised ({method}), and codes of a few bits have no gradient; "
            "set rewrite.weights to bfloat16, which writes them decoded, or tune.steps to 0"
        )


def choose_parameters(model: nn.Module, config: Mapping[str, Any], part: str) -> set[str]:
    """Return the names of the model's parameters that make up a part.

    Routers and experts are what grows with the number of experts, attention is told by its modules' classes.

    Args:
        model: the model.
        config: the `config.json` it was built from.
        part: `all`, `routers`, `experts` or `attention`.

    Raises:
        UnsupportedModelError: if the model has none of the kind.
    """
    names = {name for name, _ in model.named_parameters()}
    if part == "all":
        return names
    if part == "attention":
        inside = tuple(f"{name}." for name, module in model.named_modules() if "Attention" in type(module).__name__)
        found = {name for name in names if name.startswith(inside)}
    else:
        routers, experts = find_routed_parameters(config)
        found = names & (routers if part == "routers" else experts)
    if not found:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no parameters that are told to be its {part}; set tune.parameters to all"
        )
    return found


def prepare_student(model: Any, config: Mapping[str, Any], settings: TuneSettings) -> Any:
    """Return the model with gradients for what is trained alone, which is held in float32.

    Raises:
        UnsupportedModelError: if the model has none of what is to be trained.
    """
    chosen = choose_parameters(model, config, settings.parameters)
    if settings.kind == "lora":
        return _add_adapters(model, chosen, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            parameter.data = parameter.data.float()
    return model


def _add_adapters(model: Any, chosen: set[str], settings: TuneSettings) -> Any:
    """Return peft's model around this one; its own parameters require no gradient then."""
    from peft import LoraConfig, get_peft_model  # an extra, whose absence is told before anything runs

    # By modules peft would read gate_proj of a dense layer as a part of fused experts, so all go by parameters.
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=[],
        target_parameters=find_targets(model, chosen),
        bias="none",
    )
    return get_peft_model(model, config)


def find_targets(model: Any, chosen: set[str]) -> list[str]:
    """Return the names of the parameters that get added matrices: linear weights, fused experts and routers.

    Vectors, embeddings, the head and convolutions stay as they are.

    Raises:
        UnsupportedModelError: if there is nothing of the kind.
    """
    head, found = model.get_output_embeddings(), []
    for name in sorted(chosen):
        module = model.get_submodule(name.rpartition(".")[0])
        if module is head or isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if model.get_parameter(name).ndim in (2, 3):
            found.append(name)
    if not found:
        raise UnsupportedModelError(
            "the parameters chosen have no matrix that can be adapted; set tune.parameters to all, or tune.kind to "
            "full"
        )
    return found


def merge_adapters(student: Any) -> Any:
    """Return the model with added matrices added to its weights; a model without any as it is."""
    return student.merge_and_unload() if hasattr(student, "merge_and_unload") else student


def count_bytes(model: nn.Module) -> Mapping[str, int]:
    """Return the bytes of a model's weights, `frozen` and `trained`."""
    sizes = {"frozen": 0, "trained": 0}
    for parameter in model.parameters():
        sizes["trained" if parameter.requires_grad else "frozen"] += parameter.numel() * parameter.element_size()
    return sizes
