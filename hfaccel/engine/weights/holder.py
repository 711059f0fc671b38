"""Modules with a packed weight: an embedding, or, with a forward of its own, a linear layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import nn

from hfaccel.engine.replacements import Find, Keywords, ModuleReplacement, Settings, register
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.reads import TIED
from hfaccel.engine.weights.repacking import pack_again, unpack_for_now, unpack_to_train
from hfaccel.replacement import replace


class PackedHolder(ModuleReplacement):
    """A module whose parameter `weight` may be packed, in the class `hfaccel_key`."""

    hfaccel_key: ClassVar[type[PackedWeight]]
    weight: Any

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        """Where `.to()` and the like change the weight, they get an ordinary one. Their result is packed
        again if the kernels take its type."""
        weight = self._parameters.get("weight")
        if isinstance(weight, PackedWeight) and fn(weight) is not weight:
            unpack_for_now(self)
        super()._apply(fn, recurse)
        pack_again(self, self.hfaccel_key, exactly=False)
        return self

    def train(self, mode: bool = True) -> Self:
        """An optimizer reads and writes whole weights, many times between two evaluations."""
        super().train(mode)
        if mode:
            unpack_to_train(self)
        else:
            pack_again(self, self.hfaccel_key, exactly=True)
        return self

    def _save_to_state_dict(self, destination: Keywords, prefix: str, keep_vars: bool) -> None:
        """Checkpoints hold ordinary tensors."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if isinstance(self.weight, PackedWeight) and not keep_vars:
            destination[prefix + "weight"] = self.weight.unpack()


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
