"""In which numbers a model multiplies: one name for each, from a user's arguments to saved files."""

from __future__ import annotations

from enum import Enum
from typing import Any

import torch

from hfaccel.errors import UsageError


class Precision(Enum):
    """What the user asked for; None in its place is the checkpoint's own type."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    INT8_WEIGHT_ONLY = "int8-weight-only"
    INT4_WEIGHT_ONLY = "int4-weight-only"

    def __str__(self) -> str:
        return self.value

    @property
    def short(self) -> str:
        """For reports and the names of cached files."""
        return {"float32": "fp32", "bfloat16": "bf16"}.get(self.value, self.value)

    @property
    def is_weight_only(self) -> bool:
        """Whether it is about the bytes of weights, and not about how fast many rows are multiplied."""
        return self in (Precision.INT8_WEIGHT_ONLY, Precision.INT4_WEIGHT_ONLY)

    def arguments(self) -> dict[str, Any]:
        """The arguments of optimize() that ask for it."""
        if self.value in QUANTIZED:
            return {"quantization": self.value}
        return {"dtype": getattr(torch, self.value)}


QUANTIZED = ("int8", "int8-weight-only", "int4-weight-only")  # values of optimize(quantization=...)


def asked_for(dtype: torch.dtype | None, quantization: str | None) -> Precision | None:
    """What these arguments of optimize() ask for. Raises UsageError for values that nothing multiplies in."""
    if dtype not in (None, torch.float32, torch.bfloat16):
        raise UsageError(f"dtype must be None, torch.float32 or torch.bfloat16, but got {dtype!r}")
    if quantization not in (None, *QUANTIZED):
        raise UsageError(f"quantization must be None or one of {QUANTIZED}, but got {quantization!r}")
    return named(quantization or (str(dtype).removeprefix("torch.") if dtype else None))


def named(name: str | None) -> Precision | None:
    """The precision of this name; None for none. Raises ValueError for another name."""
    return Precision(name) if name else None
