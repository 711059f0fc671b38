"""AWQ in the layout GEMM, as modules of gptqmodel hold it: everything is packed along the outputs, eight to a
word, in an order of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfaccel.engine.weights.checkpoints.integers import Integers, Unreadable, integers, unpacked

PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # in a word, of eight outputs one after another


def recognises(module: nn.Module) -> bool:
    names = {*module._buffers}
    return {"qweight", "qzeros", "scales"} <= names and "g_idx" not in names and hasattr(module, "group_size")


def read(module: Any) -> Integers:
    """Raises Unreadable for what the kernels do not know."""
    columns, rows = module.in_features, module.out_features
    if module.bits != 4:
        raise Unreadable(f"its weight has {module.bits} bits; of AWQ the kernels read 4")
    stored, qweight = (columns, rows // len(PLACES)), module.qweight
    if qweight.dtype is not torch.int32 or qweight.shape != stored or module.qzeros.dtype is not torch.int32:
        raise Unreadable(
            f"its numbers must lie as in the layout GEMM, {stored} words of int32, but are "
            f"{tuple(qweight.shape)} of {qweight.dtype}; optimize the model before its first call"
        )
    numbers, zeros = _in_order(qweight).t(), _in_order(module.qzeros).t().float()
    return integers(numbers.contiguous(), module.scales.t(), zeros, bits=4, group=module.group_size)


def _in_order(words: torch.Tensor) -> torch.Tensor:
    numbers = unpacked(words, 4)
    return numbers.view(len(words), -1, len(PLACES))[..., list(PLACES)].flatten(1)
