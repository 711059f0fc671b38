"""The errors of hfaccel. Each states the rule, the value received and the remedy, and has an exit code."""

from __future__ import annotations

import os
from typing import SupportsIndex


class HfaccelError(Exception):
    """An expected failure. Commands print it as one line, without a traceback, and exit with its code."""

    exit_code = 1


class UsageError(HfaccelError, ValueError):
    """An argument or option breaks a rule."""

    exit_code = 2


class ModelError(HfaccelError, TypeError):
    """The object given is not a model that hfaccel can work on."""

    exit_code = 2


class KernelsMissing(HfaccelError, RuntimeError):
    """A computation needs kernels that this CPU, or this installation, does not have."""


class StockPathError(HfaccelError, RuntimeError):
    """With HFACCEL_STRICT=1: a call of an optimized model would take the model's own, slower path."""


class StockPathWarning(UserWarning):
    """A call of an optimized model took the model's own, slower path; once for each model and reason."""


class ScriptError(HfaccelError):
    """The program that `hfaccel-run` should start cannot be started."""

    exit_code = 2  # Python's own for a script that does not exist


# Rules that many arguments share


def whole_number(value: object) -> int | None:
    """`value` as an int where it is an integer (NumPy's included); None for anything else, as for True."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        return None
    try:
        return value.__index__()
    except TypeError:  # every tensor has the method, and refuses it unless it holds one integer
        return None


def check_count(name: str, value: object, remedy: str = "") -> int:
    """`value` as an int. Raises UsageError unless it is an integer from 1 on."""
    number = whole_number(value)
    if number is None or number < 1:
        raise UsageError(f"`{name} >= 1` must hold, but got {value!r}{remedy}")
    return number


def check_path(name: str, value: object) -> str | os.PathLike[str]:
    """`value`. Raises UsageError unless it is a path."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} must be a path, but got {value!r}")
    return value
