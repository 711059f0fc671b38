"""Modules with packed parameters: embeddings; and, with forwards of their own, linear layers and experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import nn

from hfaccel.engine.replacements import Find, Keywords, ModuleReplacement, Settings, register
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.reads import TIED
from hfaccel.engine.weights.repacking import pack_again, unpack_for_now, unpack_to_train
from hfaccel.replacement import replace


class PackedHolder(ModuleReplacement):
    """A module whose parameter `weight` may be packed, in the class `hfaccel_key`; or other parameters, as
    `hfaccel_packed` says."""

    hfaccel_key: ClassVar[Any]
    weight: Any

    @classmethod
    def hfaccel_packed(cls) -> Mapping[str, type[PackedWeight]]:
        """The names of parameters that may be packed, and their classes then."""
        return {"weight": cls.hfaccel_key}

    def hfaccel_weights(self) -> list[PackedWeight]:
        """Those that are packed now."""
        found = (self._parameters.get(name) for name in self.hfaccel_packed())
        return [weight for weight in found if isinstance(weight, PackedWeight)]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Where `.to()` and the like change a parameter, they get an ordinary one. Their result is packed
        again if the kernels take its type."""
        for name in self.hfaccel_packed():
            weight = self._parameters.get(name)
            if isinstance(weight, PackedWeight) and fn(weight) is not weight:
                unpack_for_now(self, name)
        super()._apply(fn, recurse)
        for name, packed in self.hfaccel_packed().items():
            pack_again(self, packed, exactly=False, name=name)
        return self

    def train(self, mode: bool = True) -> Self:
        """An optimizer reads and writes whole weights, many times between two evaluations."""
        super().train(mode)
        for name, packed in self.hfaccel_packed().items():
            if mode:
                unpack_to_train(self, name)
            else:
                pack_again(self, packed, exactly=True, name=name)
        return self

    def _save_to_state_dict(self, destination: Keywords, prefix: str, keep_vars: bool) -> None:
        """Checkpoints hold ordinary tensors."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.hfaccel_packed():
            weight = self._parameters.get(name)
            if isinstance(weight, PackedWeight) and not keep_vars:
                destination[prefix + name] = weight.unpack()


@register
class PackedEmbedding(PackedHolder):
    """An embedding that is tied to a packed linear layer: rows are unpacked as they are looked up
    (`PackedWeight.rows`)."""

    hfaccel_name = "embedding"

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        if not isinstance(module, nn.Embedding):
            raise ValueError(f"an nn.Embedding may be tied to a linear layer, not a {type(module).__name__}")
        if not isinstance(module, PackedEmbedding):
            replace(module, cls, PackedWeight)
        setattr(module.weight, TIED, True)
