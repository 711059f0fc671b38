"""Which modules are of one kind, so that the trial of one is valid for all of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator
from enum import Enum
from functools import partial
from types import MethodType

import torch
from torch import nn

from hfaccel.engine.calls.settings import FUNCTIONS
from hfaccel.engine.calls.snapshot import Table
from hfaccel.replacement import PREFIX

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, Enum)
CONTAINERS = (list, tuple, dict, set, frozenset)
TORCHS = frozenset(vars(nn.Module()))
# A layer's number among the layers of its model. Caches read the index, but a fused layer takes no cache. Any
# other dependence is noticed: choices made when the layer was built, such as a sliding window, are attributes
# of their own, and `hfaccel.engine.layers.trial` finds out whether a forward reads the index.
INDICES = ("layer_idx", "layer_id")


def kind_of(module: nn.Module, indexed: bool = False) -> Hashable:
    """Equal for modules that compute the same if their weights are equal: all parts have the same classes and
    shapes, and the same attributes, configs included. `indexed`: indices count too."""
    known: dict[int, Hashable] = {}
    return tuple(
        (path, type(part), part.training, *_shapes(part), *_attributes(part, indexed, known))
        for path, part in module.named_modules()
    )


def indices_of(layer: nn.Module) -> Iterator[tuple[Table, str]]:
    """Where the layer and its parts keep the layer's index: table and name."""
    for part in layer.modules():
        yield from ((vars(part), name) for name in INDICES if name in vars(part))


def _shapes(part: nn.Module) -> Iterator[Hashable]:
    for name, tensor in (*part._parameters.items(), *part._buffers.items()):
        yield name, None if tensor is None else (tensor.shape, tensor.dtype)


def _attributes(part: nn.Module, indexed: bool, known: dict[int, Hashable]) -> Iterator[Hashable]:
    for name, value in sorted(vars(part).items()):
        if name in TORCHS or name.startswith(PREFIX) or (name in INDICES and not indexed):
            continue
        yield name, _value(value, known)


def _value(value: object, known: dict[int, Hashable]) -> Hashable:
    """Equal for equal values. A value of an unknown class is equal to itself alone. `known`: configs, which
    many parts share."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, (*FUNCTIONS, partial, MethodType)):
        return _of_function(value, known)
    if isinstance(value, CONTAINERS):
        return type(value), _items(value, known)
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype
    if not hasattr(value, "to_dict"):
        return id(value)
    if id(value) not in known:
        known[id(value)] = type(value), *_value_of_config(value, known)
    return known[id(value)]


def _of_function(value: object, known: dict[int, Hashable]) -> Hashable:
    """transformers uses partials and methods as activation functions, each layer its own object."""
    if isinstance(value, partial):
        return value.func, _items(value.args, known), _items(value.keywords, known)
    if isinstance(value, MethodType):
        owner = value.__self__
        return value.__func__, type(owner) if isinstance(owner, nn.Module) else id(owner)
    return value


def _items(container: Collection[object], known: dict[int, Hashable]) -> Hashable:
    if isinstance(container, dict):
        return tuple((repr(key), _value(each, known)) for key, each in container.items())
    if isinstance(container, set | frozenset):
        return frozenset(map(repr, container))
    return tuple(_value(each, known) for each in container)


def _value_of_config(config: object, known: dict[int, Hashable]) -> Iterator[Hashable]:
    yield from ((name, _value(each, known)) for name, each in sorted(vars(config).items()))
