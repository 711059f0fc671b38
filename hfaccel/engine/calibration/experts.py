"""Whether experts lose too much in int8."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn

from hfaccel.engine.calibration.quantization import BOUND, quantization_error
from hfaccel.engine.experts.form import form_of
from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.linear import linear
from hfaccel.engine.weights.packed import PackedWeight

TRIED = 4  # matrices of each weight
ROWS = 64


def is_too_lossy(experts: nn.Module) -> bool:
    """Whether the first matrices of these experts, on noise, lose more than a linear layer may."""
    for name, cls in form_of(experts).weights.items():
        weight = experts._parameters[name]
        if weight is None or isinstance(weight, PackedWeight):
            continue
        if max(map(_error, islice(cls.matrices(weight.detach()), TRIED))) > BOUND:
            return True
    return False


def _error(matrix: torch.Tensor) -> float:
    noise = torch.randn(ROWS, matrix.shape[1], generator=torch.Generator().manual_seed(0))
    packed = PackedWeight.pack(matrix, None, Kind.INT8)
    return quantization_error(noise @ matrix.float().t(), linear(noise, packed, None))
