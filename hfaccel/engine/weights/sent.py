"""Packed weights on their way to other processes: in pickles, and in shared memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hfaccel.apply.children import share_cores
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.replacements import Arguments, Keywords


def packed_anew(
    dense: torch.Tensor,
    kind: Kind,
    requires_grad: bool,
    factors: torch.Tensor | None,
    cls: Any,
) -> nn.Parameter:
    """For unpickling: packed again where this machine can, otherwise an ordinary parameter."""
    parameter = nn.Parameter(dense, requires_grad)
    if kernels_problem():
        return parameter
    packed: nn.Parameter = cls.pack(parameter, None, kind, factors)
    return packed


def reduce_packed(weight: Any) -> tuple[Callable[..., nn.Parameter], Arguments]:
    """For multiprocessing's pickler, which moves what is sent into shared memory, as of any tensor."""
    attached = {name: value for name, value in vars(weight).items() if name not in weight.made_anew}
    shape = tuple(weight.shape)
    memory, panel_size = weight.share_memory_().memory, weight.packing.panel
    packed = memory, weight.kind, shape, weight.dtype, panel_size, weight.requires_grad
    return _attached, (type(weight), packed, attached)


def _attached(cls: Any, packed: Arguments, attached: Keywords) -> nn.Parameter:
    """In the process that gets the weight."""
    share_cores()
    weight: nn.Parameter = cls.attach(*packed)
    vars(weight).update(attached)
    return weight
