"""Calls that take a model's own path although a faster one was prepared: counted, told once, or refused."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter

from torch import nn

from hfaccel.errors import StockPathError, StockPathWarning

STRICT = "HFACCEL_STRICT"
TRAINS = "the model is in training mode"
GRADIENTS = "gradients are enabled; torch.inference_mode is faster"
EMPTY = "the input is empty"
AUTOCAST = "under autocast"
TRACED = "traced or transformed, or given a subclass of torch.Tensor"
UNPACKED = "a weight is not packed"
SLOWER = "its own forward is faster here"  # measured with this number of rows

WANTED = (TRAINS, EMPTY, SLOWER)  # the stock path is the right one: no warning, no error
SILENT = (*WANTED, GRADIENTS)  # whoever trains expects the cost of gradients

COUNTED = "_hfaccel_calls"  # attribute of a module: Counter of reasons
TOLD = "_hfaccel_told"  # attribute of a module: its model's Told; a layer on trial has none

# Beginning of a reason -> remedy
REMEDIES = (
    (GRADIENTS, "call the model under torch.inference_mode()"),
    (TRACED, "call hfaccel.restore(model) before tracing or exporting it"),
    (AUTOCAST, "hfaccel.optimize(model, dtype=torch.bfloat16) is faster, and needs no autocast"),
    (UNPACKED, "hfaccel.optimize(hfaccel.restore(model)) packs it again"),
    ("a weight was", "hfaccel.optimize(hfaccel.restore(model)) packs it again"),
    ("computed in", "give it float32 or bfloat16"),
    ("a submodule has a hook", "remove the hook"),
    ("a hook is", "remove the hook"),
    ("the submodule", "hfaccel.optimize(hfaccel.restore(model)) looks at the model as it is now"),
    ("output_attentions", "leave out output_attentions: the kernels never store attention weights"),
    ("the attention implementation", 'call model.set_attn_implementation("sdpa")'),
)
# Packages whose frames lie between a program and the layer.
BETWEEN = (
    "hfaccel",
    "torch",
    "transformers",
    "sentence_transformers",
    "contextlib",
    "threading",
    "concurrent",
)
ELSEWHERE = "docs/troubleshooting.md lists what the kernels take"


class Told:
    """The reasons that the user of one model was told. A copy of the model tells its own user."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.reasons: set[str] = set()

    def __reduce__(self) -> tuple[object, ...]:
        return Told, (self.model,)


def tell(part: nn.Module, told: Told) -> None:
    """Warn from now on when this part of a model falls back."""
    part.__dict__[TOLD] = told
    stock_calls_of(part)  # makes the attribute now: a later one would count as a change of the part


def stock_calls_of(part: nn.Module) -> Counter[str]:
    calls: Counter[str] = part.__dict__.setdefault(COUNTED, Counter())
    return calls


def fall_back(part: nn.Module, reason: str) -> None:
    """Count a call of `part` that takes the model's own path, and warn once for each model and reason. With
    HFACCEL_STRICT=1, raise StockPathError instead of warning."""
    stock_calls_of(part)[reason] += 1
    told: Told | None = part.__dict__.get(TOLD)
    if told is None or reason.startswith(WANTED):
        return
    if is_strict():
        raise StockPathError(f"with {STRICT}=1 every call must run on the kernels, but {_text(told, reason)}")
    key = reason.partition("(")[0]  # the numbers that follow differ from call to call
    if reason not in SILENT and key not in told.reasons:
        told.reasons.add(key)
        text = f"{_text(told, reason)}. Told once; hfaccel.report(model).stock_calls counts"
        warnings.warn(text, StockPathWarning, stacklevel=_level_of_user())


def _level_of_user() -> int:
    """The stacklevel with which `fall_back` points at the program's own line and not into the packages
    BETWEEN. Python 3.12 has the parameter skip_file_prefixes for this."""
    level, frame = 1, sys._getframe(1)
    while (frame.f_globals.get("__name__") or "").partition(".")[0] in BETWEEN:
        if frame.f_back is None:  # one of these packages has started this thread
            return 1
        level, frame = level + 1, frame.f_back
    return level


def is_strict() -> bool:
    return os.environ.get(STRICT, "") not in ("", "0")


def _text(told: Told, reason: str) -> str:
    remedy = next((text for start, text in REMEDIES if reason.startswith(start)), ELSEWHERE)
    return f"a layer of {told.model} took its own, slower path: {reason}. Remedy: {remedy}"
