"""compressed-tensors: linear layers that keep their class and have a `quantization_scheme`. Weights of the
format pack-quantized are words of unsigned numbers, those of int-quantized signed bytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hfaccel.engine.weights.checkpoints.integers import Integers, Rows, Unreadable, integers, unpacked


def recognises(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    stored = "weight_packed" in module._parameters or (weight is not None and weight.dtype is torch.int8)
    return hasattr(module, "quantization_scheme") and stored and isinstance(module, nn.Linear)


def read(module: Any) -> Integers | Rows:
    """Raises Unreadable for what the kernels do not know."""
    scheme = module.quantization_scheme
    weights = scheme.weights
    _check(scheme, module)
    scales, tensors = module.weight_scale, module._parameters
    group = weights.group_size if _value(weights.strategy) == "group" else 0
    if "weight_packed" not in tensors:
        return _bytes(module, scheme, group)
    rows, columns = (int(size) for size in module.weight_shape)
    numbers = unpacked(module.weight_packed.detach(), weights.num_bits)[:, :columns]
    zeros = torch.tensor(float(1 << weights.num_bits - 1))
    if not weights.symmetric and tensors.get("weight_zero_point") is not None:
        zeros = unpacked(module.weight_zero_point.detach().t(), weights.num_bits)[:, :rows].t().float()
    return integers(numbers, scales.detach(), zeros, bits=weights.num_bits, group=group)


def _bytes(module: Any, scheme: Any, group: int) -> Integers | Rows:
    numbers, scales = module.weight.detach(), module.weight_scale.detach()
    if module._parameters.get("weight_zero_point") is not None:
        raise Unreadable("its weight has zero points beside signed numbers, which the kernels do not read")
    if scheme.input_activations is not None and scales.shape == (len(numbers), 1):
        return Rows(numbers, scales[:, 0])
    zeros = torch.tensor(128.0)
    return integers(numbers.view(torch.uint8) ^ 128, scales, zeros, bits=8, group=group)


def _check(scheme: Any, module: Any) -> None:
    weights, inputs = scheme.weights, scheme.input_activations
    kinds = (_value(weights.type), weights.num_bits, _value(weights.strategy))
    if kinds[0] != "int" or kinds[1] not in (4, 8) or kinds[2] not in ("group", "channel"):
        raise Unreadable(
            "its weight must be of whole numbers of 4 or 8 bits in groups or channels, but is of "
            f"{kinds[0]} with {kinds[1]} bits, by {kinds[2]}"
        )
    if inputs is not None and not (_value(inputs.type) == "int" and inputs.num_bits == 8 and inputs.dynamic):
        raise Unreadable("its inputs are rounded in another way than to 8 bits as they come")
    if scheme.output_activations is not None:
        raise Unreadable("its results are rounded, which the kernels do not do")
    if module._parameters.get("weight_g_idx") is not None:
        raise Unreadable(
            "its inputs are in the order of activations (actorder), which the kernels do not read"
        )


def _value(choice: Any) -> Any:
    """Of an enumeration or a plain string."""
    return getattr(choice, "value", choice)
