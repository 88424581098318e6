"""The one place that calls transformers' loading internals: a model without weights, where each tensor goes.

What comes from `conversion_mapping`, `core_model_loading` and `modeling_utils` may change with any minor version
of transformers; the tests of this folder guard it.
"""

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
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
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
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
from moe_compress.families.config_keys import with_value
from moe_compress.families.per_layer import Counts, graft_layers, read_layer_counts

Shapes = Mapping[str, tuple[int, ...]]

_MAX_LAYERS = 1000  # the deepest models have a hundred or two
_IN_LAYER = re.compile(r"(?:^|\.)layers\.(\d{1,9})\.")


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
        elif "layers" in str(key) and isinstance(value, int | float) and value > _MAX_LAYERS:
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


@dataclass(frozen=True)
class Slot:
    """The part of an in-memory tensor that one checkpoint tensor fills as it is.

    Attributes:
        name: the checkpoint tensor.
        index: its place along the in-memory tensor's first axis; None if it fills the whole tensor.
        axis: the axis of what `index` leaves along which several tensors lie one after the other.
        start: where it starts along that axis.
    """

    name: str
    index: int | None = None
    axis: int = 0
    start: int = 0


@dataclass(frozen=True)
class Assembly:
    """The checkpoint tensors that become one in-memory tensor, or several by one of transformers' operations.

    Attributes:
        target: the in-memory tensor, the first one if there are several.
        names: the checkpoint tensors, in the loader's order.
        slots: where each goes, if all are copied as they are; None if operations must run (`convert`).
    """

    target: str
    names: tuple[str, ...]
    slots: tuple[Slot, ...] | None
    _converter: Any = None
    _patterns: tuple[str, ...] = ()

    def convert(self, model: PreTrainedModel, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return in-memory tensor name -> value by transformers' own operations.

        Args:
            model: the model, for operations that ask for its sizes.
            tensors: a value for each of `names`.
        """
        converter = copy.deepcopy(self._converter)
        for name, pattern in zip(self.names, self._patterns, strict=True):
            converter.add_tensor(self.target, name, pattern, tensors[name])
        values = converter.convert(self.target, model=model, config=model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in values.items()}


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


def dtypes_in_memory(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return in-memory tensor name -> the dtype stock loading gives it when the model computes in `dtype`."""
    kept = {
        re.compile(pattern.replace("*", ".*")): value for pattern, value in model._get_dtype_plan(dtype).items()
    }
    return {
        name: next((value for pattern, value in kept.items() if pattern.search(name)), tensor.dtype)
        for name, tensor in model.state_dict().items()
    }


def list_assemblies(model: PreTrainedModel, shapes: Shapes) -> list[Assembly]:
    """Return how the tensors of a checkpoint become the model's, as stock loading does it.

    Args:
        model: a model without weights.
        shapes: checkpoint tensor name -> shape; tensors the model has no place for are passed over.
    """
    state = model.state_dict()
    converters = {
        pattern: entry
        for entry in get_model_conversion_mapping(model)
        if isinstance(entry, WeightConverter)
        for pattern in entry.source_patterns
    }
    together: dict[str, list[tuple[str, str | None]]] = {}
    for name, source in locate_sources(model, shapes).items():
        if source.target in state:
            together.setdefault(source.target, []).append((name, source.pattern))
    assemblies = []
    for target, sources in together.items():
        names = tuple(name for name, _ in sources)
        patterns = tuple(pattern or "" for _, pattern in sources)
        converter = converters.get(patterns[0])
        slots = _find_slots(converter, sources, shapes)
        assemblies.append(Assembly(target, names, slots, converter, patterns))
    return assemblies


def _find_slots(converter: Any, sources: list[tuple[str, str | None]], shapes: Shapes) -> tuple[Slot, ...] | None:
    """Return where each tensor goes if stacking and concatenating is all that happens, else None."""
    if converter is None:
        return (Slot(sources[0][0]),)
    merging, *joining = converter.operations
    if not isinstance(merging, MergeModulelist) or merging.dim != 0 or len(converter.target_patterns) > 1:
        return None
    if [type(operation) for operation in joining] not in ([], [Concatenate]) or (joining and joining[0].dim < 1):
        return None
    axis = joining[0].dim - 1 if joining else 0
    slots, start = [], 0
    for pattern in converter.source_patterns:
        names = [name for name, found in sources if found == pattern]
        slots += [Slot(name, index, axis, start) for index, name in enumerate(names)]
        start += shapes[names[0]][axis] if names else 0
    return tuple(slots)


def report_loading(model: PreTrainedModel, tensors: Shapes) -> LoadReport:
    """Return what stock loading would report about a checkpoint, from its names and shapes alone.

    Args:
        model: the meta model its config describes; what is loaded into it has no memory either.
        tensors: tensor name on disk -> shape.
    """
    mapping = [_make_cheap_to_copy(entry) for entry in get_model_conversion_mapping(model)]
    loading = LoadStateDictConfig(weight_mapping=mapping, device_map={"": "meta"})
    state = {name: torch.empty(shape, device="meta") for name, shape in tensors.items()}
    with _quiet():
        info, _ = convert_and_load_state_dict_in_model(model, state, loading)
    info.missing_keys -= set(model.all_tied_weights_keys)
    before = set(info.unexpected_keys)
    model._adjust_missing_and_unexpected_keys(info)
    # stock classes know the layers behind the last one by the published models' depths alone
    info.unexpected_keys = {name for name in info.unexpected_keys if not is_predictor(name, model.config)}
    wrong = [f"{name} {list(got)} instead of {list(need)}" for name, got, need in info.mismatched_keys]
    return LoadReport(
        missing=tuple(sorted(info.missing_keys - set(info.conversion_errors))),
        unexpected=tuple(sorted(info.unexpected_keys)),
        mismatched=tuple(sorted([*wrong, *info.conversion_errors])),
        ignored=tuple(sorted(before - info.unexpected_keys)),
    )


def is_predictor(name: str, config: Any) -> bool:
    """Whether a tensor is in one of the multi-token-prediction layers that a config counts behind the last."""
    text = config.get_text_config()
    depth, count = (getattr(text, key, None) for key in ("num_hidden_layers", "num_nextn_predict_layers"))
    found = _IN_LAYER.search(name)
    if found is None or not isinstance(depth, int) or not isinstance(count, int):
        return False
    return depth <= int(found[1]) < depth + count


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
