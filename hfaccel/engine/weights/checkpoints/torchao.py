"""torchao: an nn.Linear whose weight is a tensor subclass over signed bytes, with a scale for each block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfaccel.engine.weights.checkpoints.integers import Integers, Rows, Unreadable, integers

PACKAGE = "torchao."
LISTED = ("Int8Tensor", "IntxUnpackedToInt8Tensor")


def recognises(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(module, nn.Linear) and type(weight).__module__.startswith(PACKAGE)


def read(module: Any) -> Integers | Rows:
    """Raises Unreadable for what the kernels do not know."""
    weight = module.weight
    if type(weight).__name__ not in LISTED:
        raise Unreadable(f"its weight is a {type(weight).__name__}; the kernels read {', '.join(LISTED)}")
    if (
        getattr(weight, "act_pre_scale", None) is not None
        or getattr(weight, "act_quant_scale", None) is not None
    ):
        raise Unreadable("its inputs are scaled by fixed numbers, which the kernels do not do")
    numbers, (rows, columns) = weight.qdata, weight.shape
    scale, zeros = weight.scale, weight.zero_point
    group = min(int(weight.block_size[-1]), columns)
    steps = scale.reshape(-1, scale.shape[-1] if scale.dim() > 1 else 1).expand(rows, -1)
    symmetric = zeros is None or not zeros.any()
    if getattr(weight, "act_quant_kwargs", None) is not None:
        if not symmetric or group != columns:
            raise Unreadable(
                "of weights beside rounded inputs the kernels read those with one scale for a row"
            )
        return Rows(numbers, steps[:, 0])
    bits = 4 if getattr(weight, "target_dtype", None) is getattr(torch, "int4", 0) else 8
    middle = 1 << bits - 1
    offsets = torch.zeros(()) if symmetric else zeros.float().reshape(-1, steps.shape[1]).expand(rows, -1)
    unsigned = (numbers.short() + middle).to(torch.uint8)
    return integers(unsigned, steps, offsets + middle, bits=bits, group=group)
