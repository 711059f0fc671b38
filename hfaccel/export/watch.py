"""Whether a model is still the one that was exported. Asked at every call: tens of microseconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hfaccel.upstream.of_torch import global_hooks
from hfaccel.upstream.of_transformers import COLLECTING

PLAIN = (torch.Tensor, nn.Parameter)  # hfaccel's packed weights have no address


class Watch:
    """Remembers a model's modules, parameters and their versions."""

    VALUES: ClassVar[str] = "weights were changed after the export; optimize the model again"
    PARTS: ClassVar[str] = "a part of the model was replaced or cast after the export; optimize it again"
    HOOK: ClassVar[str] = "a submodule has a hook"
    TRAINING: ClassVar[str] = "a submodule is in training mode"

    def __init__(self, model: nn.Module) -> None:
        self.links = list(_links(model))
        self.tensors = [part for _, _, part in self.links if isinstance(part, torch.Tensor)]
        self.floating = [tensor for tensor in self.tensors if tensor.is_floating_point()]
        self.types = self._types()
        self.values = self._values()
        self.modules = [vars(part) for _, _, part in self.links if isinstance(part, nn.Module)]
        self.hooks = [
            hooks
            for module in model.modules()
            if module is not model
            for hooks in (module._forward_hooks, module._forward_pre_hooks)
        ]
        self.hooks += global_hooks

    def problem(self) -> str:
        for table, name, part in self.links:
            if table.get(name) is not part:
                return self.PARTS
        if self._types() != self.types:
            return self.PARTS
        if self._values() != self.values:
            return self.VALUES
        for hooks in self.hooks:
            if hooks and any(hook.__module__ != COLLECTING for hook in hooks.values()):
                return self.HOOK
        if any(module["training"] for module in self.modules):  # Monte Carlo dropout
            return self.TRAINING
        return ""

    def _types(self) -> list[torch.dtype]:
        """model.half() exchanges the data of parameters and leaves their identity alone."""
        return [tensor.dtype for tensor in self.floating]

    def _values(self) -> list[int]:
        """What changes with every write but one through `tensor.data`, which leaves no trace."""
        versions = [tensor._version for tensor in self.tensors if not tensor.is_inference()]
        return versions + [tensor.data_ptr() for tensor in self.floating if type(tensor) in PLAIN]


def _links(module: nn.Module) -> Iterator[tuple[Mapping[str, object], str, object]]:
    """Every parameter, buffer and submodule, with the table and name under which its parent knows it."""
    for table in (module._parameters, module._buffers, module._modules):
        for name, part in table.items():
            if part is not None:
                yield table, name, part
    for child in module.children():
        yield from _links(child)


UNLIMITED = 2**62
_limits: WeakKeyDictionary[nn.Module, dict[str, int]] = WeakKeyDictionary()


def limits(model: nn.Module) -> dict[str, int]:
    """Sizes of the tables that the inputs are looked up in, by input; "positions": tokens in a sequence."""
    if model not in _limits:
        _limits[model] = {
            "input_ids": getattr(model.config, "vocab_size", 0) or UNLIMITED,
            "token_type_ids": getattr(model.config, "type_vocab_size", 0) or UNLIMITED,
            "positions": _positions(model),
        }
    return _limits[model]


def _positions(model: nn.Module) -> int:
    """RoBERTa and its kind number positions from behind the padding token's."""
    found = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and "position_embeddings" in name
    ]
    return min(found, default=UNLIMITED)
