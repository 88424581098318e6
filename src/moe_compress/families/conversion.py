"""The one place that calls transformers' loading internals: where each tensor of a checkpoint goes.

What comes from `conversion_mapping`, `core_model_loading` and `modeling_utils` may change with any minor version
of transformers; the tests of this folder guard it.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
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
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

Shapes = Mapping[str, tuple[int, ...]]

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
    with no_loading_bar():
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
def no_loading_bar() -> Iterator[None]:
    """Keep the progress bar of transformers' loader away inside the block."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
