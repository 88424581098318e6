"""A device with memory of its own, made of host memory: mixing them fails as on a GPU, and waiting is counted.

torch takes a backend written in Python. This one computes as the host does, so its results are the host's bits.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import torch
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

import moe_compress

_setup_privateuseone_for_python_backend()
# A tensor that is made of another has no count of changes to watch, which torch's inference mode insists on.
torch.inference_mode = torch.no_grad
_WATCHED = str(Path(moe_compress.__file__).parent)
DEVICE = torch.device("privateuseone:0")
_OPERATORS = torch.library.Library("aten", "IMPL")
_DATA_DEPENDENT = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}
_INDEXING = {"aten::index", "aten::index_put_", "aten::_index_put_impl_"}

waits: Counter[str] = Counter()
"""`file:line` of the product -> how often the host waited for the device there."""


class Remote(torch.Tensor):
    """A tensor of the device; `held` is where its values really are."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        tensor.held = held
        return tensor

    def tolist(self):
        """Wait for the values."""
        _count_wait()
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func._schema.name
        if name in ("aten::to", "aten::cpu"):  # their device may stand anywhere; what they are made of names it
            return func.decompose(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        goes_there = _check_places(name, tensors, args, kwargs)
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "aten::histc":  # whole numbers, which only GPUs count
            args = (args[0].float(), *args[1:])
        args, kwargs = tree_map_only(Remote, lambda tensor: tensor.held, (args, kwargs))
        known = {id(each.held): each for each in tensors if isinstance(each, Remote)}  # what is changed in place
        found = func(*args, **kwargs)
        if not goes_there:
            return found
        return tree_map_only(
            torch.Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else Remote(tensor), found
        )


def _check_places(name, tensors, args, kwargs):
    """Count what waits, refuse what mixes memories, and return whether the result is the device's."""
    here = [each for each in tensors if not isinstance(each, Remote)]
    if name == "aten::copy_":
        if here:
            _count_wait()
        return isinstance(args[0], Remote)
    if name == "aten::_to_copy":
        goes_there = kwargs.get("device") is None or kwargs["device"].type == DEVICE.type
        if not goes_there:
            _count_wait()
        return goes_there
    places = [each for each in args[1] if each is not None] if name in _INDEXING else ()
    if name in _DATA_DEPENDENT or any(each.dtype == torch.bool or not isinstance(each, Remote) for each in places):
        _count_wait()
    elif any(each.dim() for each in here):
        raise RuntimeError(f"{name} got tensors of the host and of the device: {[each.shape for each in tensors]}")
    return kwargs.get("device") is None or kwargs["device"].type == DEVICE.type


def _count_wait():
    frame = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(_WATCHED):
        frame = frame.f_back
    if frame is not None:
        waits[f"{Path(frame.f_code.co_filename).relative_to(_WATCHED)}:{frame.f_lineno}"] += 1


def send(model):
    """Bring a model's weights and buffers to the device."""
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = _send(tensor)
    return model


def _send(tensor):
    sent = tensor.detach().to(DEVICE)
    return torch.nn.Parameter(sent, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else sent


def _empty(size, *, dtype=None, layout=None, device=None, pin_memory=None, memory_format=None):
    return Remote(torch.empty(size, dtype=dtype))


def _empty_strided(size, stride, *, dtype=None, layout=None, device=None, pin_memory=None):
    return Remote(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source, target, non_blocking=False):
    _count_wait()
    held = [each.held if isinstance(each, Remote) else each for each in (source, target)]
    held[1].copy_(held[0])
    return target


_OPERATORS.impl("empty.memory_format", _empty, "PrivateUse1")
_OPERATORS.impl("empty_strided", _empty_strided, "PrivateUse1")
_OPERATORS.impl("_copy_from", _copy_from, "PrivateUse1")
