"""Models from a `config.json` alone, without weights; no code that came with a checkpoint ever runs."""

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch.overrides import TorchFunctionMode
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from moe_compress.errors import UnsupportedModelError
from moe_compress.families.config_keys import with_value
from moe_compress.families.per_layer import Counts, graft_layers, read_layer_counts

_MAX_LAYERS = 1000  # the deepest models have a hundred or two
_COUNTS_LAYERS = re.compile("layers|depth")  # of a language model, of a tower of vision


def build_config(config: Mapping[str, Any]) -> Any:
    """Return transformers' config object for a `config.json`; never runs code that came with a checkpoint.

    Raises:
        UnsupportedModelError: if transformers knows neither the model type nor the model class, or refuses a value.
    """
    family = _find_config_class(config)
    is_known = config["model_type"] in CONFIG_MAPPING
    known = dict(config) if is_known else {**config, "model_type": family.model_type}
    _refuse_endless(config)
    try:
        return family.from_dict(family._decode_special_floats(copy.deepcopy(known)))
    except Exception as error:  # validators raise many kinds
        raise UnsupportedModelError(
            f"transformers refuses this '{config.get('model_type')}' config.json ({_first_line(error)}); correct it"
        ) from error


def _find_config_class(config: Mapping[str, Any]) -> type[PreTrainedConfig]:
    """Return the class of the model type, or else of the model that `architectures` names, as for Kimi-K2.

    Raises:
        UnsupportedModelError: if there is none, or the model type is no text.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnsupportedModelError(
            f"config.json has model_type {str(model_type)[:80]}, which is no text; correct it"
        )
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]  # type: ignore[no-any-return]
    named = getattr(find_model_class(config), "config_class", None)
    if named is None:
        raise UnsupportedModelError(
            f"config.json has model_type {model_type!r}, which transformers {transformers.__version__} does "
            "not know; use a checkpoint of an architecture it supports"
        )
    return named  # type: ignore[no-any-return]


def find_model_class(config: Mapping[str, Any]) -> Any:
    """Return transformers' own class of the name that stands first in `architectures`, None if it has none."""
    names = config.get("architectures")
    return getattr(transformers, str(names[0]), None) if isinstance(names, list) and names else None


def is_config(value: Any) -> bool:
    """Whether a value of a config object is a config of its own."""
    return isinstance(value, PreTrainedConfig)


def _refuse_endless(config: Mapping[str, Any]) -> None:
    """Refuse a config whose model would take forever to build, even without weights.

    Raises:
        UnsupportedModelError: naming the number.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_endless(value)
        elif _COUNTS_LAYERS.search(str(key)) and isinstance(value, int | float) and value > _MAX_LAYERS:
            raise UnsupportedModelError(
                f"config.json has more than {_MAX_LAYERS} {str(key)[:80]!r}, and no model is that deep; correct it"
            )


def build_meta_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """Return the model a `config.json` describes, on the meta device: shapes, no memory.

    Layers may have different numbers of experts, whatever the stock class does with such a config.

    Raises:
        UnsupportedModelError: if transformers cannot build it.
    """
    return _with_own_counts(config, lambda alike: _build_stock(alike, _on_meta()))


def _with_own_counts(
    config: Mapping[str, Any], build_alike: Callable[[Mapping[str, Any]], PreTrainedModel]
) -> PreTrainedModel:
    """Return the model of a config whose layers may have different numbers of experts.

    Args:
        config: the checkpoint's `config.json`.
        build_alike: returns the model of a config whose layers are alike.
    """
    layers = read_layer_counts(config)
    if layers is None:
        return build_alike(config)
    plain, prefix = layers.plain, layers.prefix

    def build(counts: Counts) -> PreTrainedModel:
        changed = plain
        for name, value in counts.items():
            changed = with_value(changed, [prefix + name], value)
        return build_alike(changed)

    model = build_alike(plain)
    graft_layers(model, layers.counts, build)
    return model


def _build_stock(config: Mapping[str, Any], empty: AbstractContextManager[Any], **options: Any) -> PreTrainedModel:
    built = build_config(config)
    factory = _model_factory(config, built)
    try:
        with empty:
            return factory(built, **options)
    except Exception as error:  # model code raises many kinds
        raise UnsupportedModelError(
            f"transformers cannot build a '{built.model_type}' model from this config.json "
            f"({_first_line(error)}); correct it, or use a checkpoint it can build"
        ) from error


@contextmanager
def _on_meta() -> Iterator[None]:
    with torch.device("meta"), no_init_weights():
        yield


def _model_factory(config: Mapping[str, Any], built: Any) -> Callable[..., PreTrainedModel]:
    """Return how to build the class that `architectures` names, or else the model type's language model."""
    named = find_model_class(config)
    fits = getattr(named, "config_class", None) is type(built)
    factory: Callable[..., PreTrainedModel] = named._from_config if fits else find_auto_class(built).from_config
    return factory


def find_auto_class(built: Any) -> Any:
    """Return the stock class that makes a model of a config: of text, or of text and images where that is all."""
    reads_images = type(built) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    is_text = type(built) in MODEL_FOR_CAUSAL_LM_MAPPING or not reads_images
    return AutoModelForCausalLM if is_text else AutoModelForImageTextToText


def build_skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> PreTrainedModel:
    """Return a model whose parameters have no memory and whose buffers, such as rotary frequencies, are real.

    Layers may have different numbers of experts.

    Args:
        config: the checkpoint's `config.json`.
        dtype: what the model computes in.

    Raises:
        UnsupportedModelError: if transformers cannot build it.
    """
    return _with_own_counts(config, lambda alike: _build_stock(alike, _without_weights(), dtype=dtype).eval())


class _EmptyOnMeta(TorchFunctionMode):
    """Makes what is to be filled later on the meta device.

    Taken from the host's memory for a moment, as parameters are before they are put on that device, every layer's
    weights leave holes between what stays. Streaming would fill them little by little: memory grows with depth.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        return function(*args, **({**given, "device": "meta"} if function is torch.empty else given))


@contextmanager
def _without_weights() -> Iterator[None]:
    """Put parameters, and not buffers, on the meta device."""
    with init_empty_weights(include_buffers=False), _EmptyOnMeta():
        yield


def _first_line(error: Exception) -> str:
    line = re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in line)  # a config's own text may be in it
