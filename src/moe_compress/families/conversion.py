"""The one place that calls transformers' loading internals: a model without weights, where each tensor goes.

What comes from `conversion_mapping`, `core_model_loading` and `modeling_utils` may change with any minor version
of transformers; the tests of this folder guard it.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from moe_compress.errors import UnsupportedModelError

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Source:
    """The in-memory tensor a checkpoint tensor goes into, and the conversion pattern if one applies."""

    target: str
    pattern: str | None


@dataclass(frozen=True)
class LoadReport:
    """What stock loading would complain about, and the tensors it would pass over in silence."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    ignored: tuple[str, ...]


def build_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' config object for a `config.json`; never runs code that came with a checkpoint.

    Raises:
        UnsupportedModelError: if transformers knows neither the model type nor the model class, or refuses a value.
    """
    family = _find_config_class(config)
    is_known = str(config.get("model_type")) in CONFIG_MAPPING
    known = dict(config) if is_known else {**config, "model_type": family.model_type}
    try:
        return family.from_dict(family._decode_special_floats(copy.deepcopy(known)))
    except Exception as error:  # validators raise many kinds
        raise UnsupportedModelError(
            f"transformers refuses this '{config.get('model_type')}' config.json ({_first_line(error)}); correct it"
        ) from error


def _find_config_class(config: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return the class of the model type, or else of the model that `architectures` names, as for Kimi-K2."""
    model_type = str(config.get("model_type"))
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]  # type: ignore[no-any-return]
    named = getattr(_find_model_class(config), "config_class", None)
    if named is None:
        raise UnsupportedModelError(
            f"config.json has model_type {model_type!r}, which transformers {transformers.__version__} does "
            "not know; use a checkpoint of an architecture it supports"
        )
    return named  # type: ignore[no-any-return]


def _find_model_class(config: Mapping[str, Any]) -> Any:
    """Return transformers' own class of the name that stands first in `architectures`, None if it has none."""
    names = config.get("architectures")
    return getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None


def is_config(value: Any) -> bool:
    """Whether a value of a config object is a config of its own."""
    return isinstance(value, PreTrainedConfig)


def build_meta_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Return the model a `config.json` describes, on the meta device: shapes, no memory.

    Raises:
        UnsupportedModelError: if transformers cannot build it.
    """
    built = build_config(config)
    factory = _model_factory(config, built)
    try:
        with torch.device("meta"), no_init_weights():
            return factory(built)
    except Exception as error:  # model code raises many kinds
        raise UnsupportedModelError(
            f"transformers cannot build a '{built.model_type}' model from this config.json "
            f"({_first_line(error)}); check its sizes"
        ) from error


def _model_factory(config: Mapping[str, Any], built: Any) -> Callable[[Any], PreTrainedModel]:
    """Return how to build the class that `architectures` names, or else the model type's language model."""
    named = _find_model_class(config)
    fits = getattr(named, "config_class", None) is type(built)
    factory: Callable[[Any], PreTrainedModel] = named._from_config if fits else AutoModelForCausalLM.from_config
    return factory


def shapes_in_memory(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return in-memory tensor name -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def locate_sources(model: PreTrainedModel, names: Iterable[str]) -> dict[str, Source]:
    """Return checkpoint tensor name -> the in-memory tensor it goes into, as the loader decides it."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    sources = {}
    for name in sorted(names, key=dot_natural_key):  # the loader's order: some renamings depend on it
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        sources[name] = Source(target, pattern)
    return sources


def report_loading(model: PreTrainedModel, tensors: Shapes) -> LoadReport:
    """Return what stock loading would report about a checkpoint, from its names and shapes alone.

    Args:
        model: the meta model its config describes; what is loaded into it has no memory either.
        tensors: tensor name on disk -> shape.
    """
    loading = LoadStateDictConfig(weight_mapping=get_model_conversion_mapping(model), device_map={"": "meta"})
    state = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    with _quiet():
        info, _ = convert_and_load_state_dict_in_model(model, state, loading)
    info.missing_keys -= set(model.all_tied_weights_keys)
    before = set(info.unexpected_keys)
    model._adjust_missing_and_unexpected_keys(info)
    wrong = [f"{name} {list(got)} instead of {list(need)}" for name, got, need in info.mismatched_keys]
    return LoadReport(
        missing=tuple(sorted(info.missing_keys - set(info.conversion_errors))),
        unexpected=tuple(sorted(info.unexpected_keys)),
        mismatched=tuple(sorted([*wrong, *info.conversion_errors])),
        ignored=tuple(sorted(before - info.unexpected_keys)),
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the loader's progress bar away: nothing is loaded."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
