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
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
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

_MAX_LAYERS = 1000  # the deepest models have a hundred or two


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
        UnsupportedModelError: if transformers does not know the model type or refuses a value.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"config.json has model_type {model_type!r}, which transformers {transformers.__version__} does "
            "not know; use a checkpoint of an architecture it supports"
        )
    _refuse_endless(config)
    try:
        return CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(dict(config)))
    except Exception as error:  # validators raise many kinds
        raise UnsupportedModelError(
            f"transformers refuses this '{model_type}' config.json ({_first_line(error)}); correct it"
        ) from error


def _refuse_endless(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model would take forever to build, even without weights.

    Raises:
        UnsupportedModelError: naming the number.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_endless(value)
        elif "layers" in str(key) and isinstance(value, int | float) and value > _MAX_LAYERS:
            raise UnsupportedModelError(
                f"config.json has more than {_MAX_LAYERS} {str(key)[:80]!r}, and no model is that deep; correct it"
            )


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
    names = config.get("architectures")
    named: Any = getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None
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


def report_loading(config: Mapping[str, Any], tensors: Shapes) -> LoadReport:
    """Return what stock loading would report about a checkpoint, from its config, names and shapes alone.

    Raises:
        UnsupportedModelError: if transformers cannot build the model.
    """
    model = build_meta_model(config)
    mapping = [_make_cheap_to_copy(entry) for entry in get_model_conversion_mapping(model)]
    loading = LoadStateDictConfig(weight_mapping=mapping, device_map={"": "meta"})
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


class _CheapConverter(WeightConverter):  # type: ignore[misc]
    """A converter that shares its patterns with its copies: the loader copies one for every tensor it reads."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> WeightConverter:
        made: WeightConverter = copy.copy(self)
        made.collected_tensors = copy.copy(self.collected_tensors)
        made.layer_targets = copy.copy(self.layer_targets)
        return made


def _make_cheap_to_copy(entry: Any) -> Any:
    if type(entry) is WeightConverter:
        entry.__class__ = _CheapConverter
    return entry


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
