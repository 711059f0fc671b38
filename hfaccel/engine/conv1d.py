"""GPT-2's Conv1D: a linear layer whose weight is (in_features, out_features)."""

from __future__ import annotations

from transformers.pytorch_utils import Conv1D

from hfaccel.engine.code import code_of
from hfaccel.engine.linear import PackedModule
from hfaccel.engine.packed import TransposedWeight


class PackedConv1D(PackedModule, Conv1D):  # type: ignore[misc]
    hfaccel_stock = Conv1D
    hfaccel_code = code_of([Conv1D])
    hfaccel_weight = TransposedWeight
