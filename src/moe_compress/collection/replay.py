"""One decoder layer of a model's own forward pass: the layers before it answer with what they said last time.

The model's code runs from its embeddings to the layer that is asked for, so masks, positions and whatever is done
between layers are the family's own. The layer before answers with its kept output, those further back with NaN: a
family whose layers look further back than one layer is found out instead of computed wrongly. Only what layers
leave for later ones in a table that is handed to each, such as keys and values that several share, is handed on.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from moe_compress.collection.batches import Batch
from moe_compress.errors import CheckpointError, UnsupportedModelError

_NO_MEMORY = (
    "can't allocate memory",  # torch's own allocator for CPUs
    "could not create a primitive",  # oneDNN, whose matrix products say no more than this
    "can't start new thread",
    "std::bad_alloc",
    "ALLOC_FAILED",  # cuBLAS
)
"""What torch and its libraries say where they raise no error of its own for it."""

Left = dict[tuple[str, str], tuple[torch.Tensor, ...]]


@dataclass(frozen=True)
class LayerOutput:
    """What a decoder layer hands on for one batch.

    Attributes:
        parts: its tensors; the hidden states come first. None stays None.
        is_tuple: whether the layer returns a tuple or its only tensor.
        left: (keyword argument, key) -> what this layer and those before it put into a table for later layers.
    """

    parts: tuple[torch.Tensor | None, ...]
    is_tuple: bool
    left: Left = field(default_factory=dict)

    @property
    def value(self) -> Any:
        """What the layer returned."""
        return self.parts if self.is_tuple else self.parts[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        return sum(part.nbytes for part in self.parts if part is not None)

    def to(self, device: torch.device) -> LayerOutput:
        """Return it on a device."""
        left = {place: tuple(part.to(device) for part in parts) for place, parts in self.left.items()}
        return LayerOutput(tuple(p if p is None else p.to(device) for p in self.parts), self.is_tuple, left)

    def as_unknown(self) -> LayerOutput:
        """Return the same shapes with NaN for every number, in no memory."""
        parts = tuple(
            part.new_full((), torch.nan).expand(part.shape)
            if part is not None and part.is_floating_point()
            else part
            for part in self.parts
        )
        return LayerOutput(parts, self.is_tuple)


class Replay:
    """A model's decoder layers, run one by one; between runs the model is as it was.

    Args:
        model: a transformers model.

    Attributes:
        path: where the decoder layers lie in the model, such as `model.layers`.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self.path, self._stack = find_stack(model)
        self._layers = list(self._stack)

    def __len__(self) -> int:
        return len(self._layers)

    def run(self, index: int, batch: Batch, before: LayerOutput | None) -> LayerOutput:
        """Return a layer's output for one batch.

        Args:
            index: the decoder layer, whose weights are in memory.
            batch: on the model's device.
            before: the output of the layer before; None for the first.

        Raises:
            UnsupportedModelError: if the family's layers need more than the layer before told.
            CheckpointError: if the output is not finite because of the weights.
        """
        output = self._run(index, batch, before, before.as_unknown() if before else None)
        if not _is_finite(output, batch):
            if before is not None and _is_finite(self._run(index, batch, before, before), batch):
                raise UnsupportedModelError(self._say(index, "uses what layers before its neighbour computed"))
            raise CheckpointError(
                f"layer {index} gives values that are not finite for tokens of the demonstrations; check "
                f"'{self.path}.{index}' of the checkpoint for damaged weights, or set collect.dtype to float32; "
                "either starts anew, and the same command on the same weights goes on from this layer"
            )
        return output

    def _run(
        self, index: int, batch: Batch, before: LayerOutput | None, further: LayerOutput | None
    ) -> LayerOutput:
        try:
            for place, layer in enumerate(self._layers[: index + 1]):
                known = before if place == index - 1 else further
                self._stack[place] = _Last(layer, before) if place == index else _Answer(layer, known)
            self._model.base_model(batch.input_ids_BS, attention_mask=batch.mask_BS, use_cache=False)
        except _Reached as reached:
            return replace(self._checked(index, reached.output), left=reached.left)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if index:
                raise UnsupportedModelError(self._say(index, f"cannot run alone ({error})")) from error
            raise UnsupportedModelError(
                f"{type(self._model).__name__} cannot run on text as far as its first decoder layer ({error}); "
                "complete config.json, or choose a model of another family"
            ) from error
        finally:
            for place, layer in enumerate(self._layers):
                self._stack[place] = layer
        raise UnsupportedModelError(self._say(index, "is not reached by the model's forward pass"))

    def _checked(self, index: int, output: Any) -> LayerOutput:
        is_tuple = isinstance(output, tuple)
        parts = output if is_tuple else (output,)
        is_plain = all(part is None or isinstance(part, torch.Tensor) for part in parts)
        if not is_plain or not isinstance(parts[0], torch.Tensor):
            raise UnsupportedModelError(
                self._say(index, f"hands on a {type(output).__name__} of more than tensors")
            )
        return LayerOutput(parts, is_tuple)

    def _say(self, index: int, what: str) -> str:
        return (
            f"decoder layer {index} of {type(self._model).__name__} {what}, so its layers cannot be streamed one "
            "by one; set collect.mode to resident"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or the host, has no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    says_so = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return says_so or isinstance(error, (torch.OutOfMemoryError, MemoryError))


def find_stack(model: Any) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the decoder layers: the outermost list that holds routed experts.

    Raises:
        UnsupportedModelError: if there is none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and any(
            inner.rpartition(".")[2] == "experts" for inner, _ in module.named_modules()
        ):
            return name, module
    raise UnsupportedModelError(
        f"{type(model).__name__} has no layer with routed experts; give a Mixture-of-Experts checkpoint"
    )


class _Reached(Exception):
    """Leaves the model's forward pass with a layer's output, since nothing after it is needed."""

    def __init__(self, output: Any, left: Left) -> None:
        super().__init__()
        self.output, self.left = output, left


class _StandIn(nn.Module):
    """Answers for a layer; whatever else is asked of it, such as its attention's kind, the layer answers."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.__dict__["_layer"] = layer  # not as a submodule: its names would appear twice

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


class _Answer(_StandIn):
    """A layer that was run before."""

    def __init__(self, layer: nn.Module, output: LayerOutput | None) -> None:
        super().__init__(layer)
        self.__dict__["_output"] = output

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.__dict__["_output"]
        for (name, key), values in output.left.items():
            kwargs[name][key] = values
        return output.value


class _Last(_StandIn):
    """The layer that is run now."""

    def __init__(self, layer: nn.Module, before: LayerOutput | None) -> None:
        super().__init__(layer)
        self.__dict__["_left"] = before.left if before else {}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        found = _read_tables(kwargs)
        output = self.__dict__["_layer"](*args, **kwargs)
        new = {place: values for place, values in _read_tables(kwargs).items() if found.get(place) is not values}
        raise _Reached(output, self.__dict__["_left"] | new)


def _read_tables(kwargs: Mapping[str, Any]) -> Left:
    """Return (keyword argument, key) -> value, of every table of tuples of tensors."""
    return {
        (name, key): values
        for name, table in kwargs.items()
        if isinstance(table, MutableMapping)
        for key, values in table.items()
        if isinstance(values, tuple) and all(isinstance(value, torch.Tensor) for value in values)
    }


def _is_finite(output: LayerOutput, batch: Batch) -> bool:
    """Whether what a layer says of real tokens is finite; what it says of padding does not count."""
    hidden = output.parts[0]
    assert hidden is not None
    # One number tells of all; it may be too large itself, so only a closer look says no.
    return bool(hidden.sum().isfinite()) or bool(hidden[batch.mask_BS.bool()].isfinite().all())
