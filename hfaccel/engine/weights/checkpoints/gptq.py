"""GPTQ, as modules of gptqmodel hold it: `qweight` is packed along the inputs, `qzeros` along the outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfaccel.engine.weights.checkpoints.integers import Integers, Unreadable, integers, unpacked

WORD = 32  # bits


def recognises(module: nn.Module) -> bool:
    names = {*module._buffers}
    return {"qweight", "qzeros", "scales", "g_idx"} <= names and hasattr(module, "qzero_format")


def read(module: Any) -> Integers:
    """Raises Unreadable for what the kernels do not know."""
    bits, columns, rows = module.bits, module.in_features, module.out_features
    qweight, qzeros, scales = module.qweight, module.qzeros, module.scales
    if bits not in (4, 8):
        raise Unreadable(f"its weight has {bits} bits; the kernels read 4 and 8")
    stored = (columns * bits // WORD, rows)
    if qweight.dtype is not torch.int32 or qweight.shape != stored or qzeros.dtype is not torch.int32:
        raise Unreadable(
            f"its numbers must lie as in the checkpoint, {stored} words of int32, but are "
            f"{tuple(qweight.shape)} of {qweight.dtype}: a call has laid them out anew; optimize the model "
            "before its first call"
        )
    group = columns if module.group_size <= 0 else module.group_size
    if not module.g_idx.equal(torch.arange(columns, dtype=module.g_idx.dtype) // group):
        raise Unreadable(
            "its inputs are in the order of activations (desc_act), which the kernels do not read"
        )
    zeros = unpacked(qzeros, bits).t().float()
    if module.qzero_format() == 1:  # the first format stores them less 1
        zeros = zeros + 1
    return integers(unpacked(qweight.t(), bits), scales.t(), zeros, bits=bits, group=group)
