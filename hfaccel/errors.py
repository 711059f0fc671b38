"""Errors of hfaccel: each states the rule, the value received and the remedy, and has an exit code."""

from __future__ import annotations

import operator
import os
from typing import Any


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
    """Something would be computed by kernels that this CPU, or this installation, does not have."""


class StockPathError(HfaccelError, RuntimeError):
    """With HFACCEL_STRICT=1: a call of an optimized model would have taken the model's own, slower path."""


class StockPathWarning(UserWarning):
    """A call of an optimized model took the model's own, slower path; once for each model and reason."""


class ScriptError(HfaccelError):
    """The program that `hfaccel-run` should start cannot be started."""

    exit_code = 2  # as Python itself ends then


# Rules that many arguments share


def check_count(name: str, value: Any, remedy: str = "") -> int:
    """`value`, a whole number from 1 on. Raises UsageError for anything else; True is no number."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise UsageError(f"`{name} >= 1` must hold, but got {value!r}{remedy}")
    return number


def check_path(name: str, value: Any) -> str | os.PathLike[str]:
    """`value`, a path. Raises UsageError for anything else."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{name} must be a path, but got {value!r}")
    return value
