"""What a tuned script reports of its run."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from hfaccel.errors import HfaccelError, UsageError

FILE = "HFACCEL_TUNE_REPORT"  # variable: where the values of a trial are collected


def report(value: float) -> None:
    """Tell `hfaccel tune` how good this run was: seconds, texts a second, or another number above 0.

    The last value of a process counts; of several instances, each has its own. Without `hfaccel tune` this
    does nothing. Raises UsageError for a value that is no number above 0.
    """
    number = _checked(value)
    path = os.environ.get(FILE)
    if path:
        line = json.dumps({"process": os.getpid(), "value": number}) + "\n"
        with Path(path).open("a", encoding="utf-8") as file:  # a line is written at once: instances share it
            file.write(line)


def _checked(value: float) -> float:
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UsageError(f"a reported value must be a number above 0, but got {value!r}")
    return number


def read_reports(path: Path) -> tuple[float, ...]:
    """The last value of each process; () where none has reported."""
    last: dict[int, float] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            last[told["process"]] = float(told["value"])
    except FileNotFoundError:
        return ()
    except (ValueError, KeyError, TypeError) as error:
        raise HfaccelError(
            f"the values of a trial must be those of hfaccel.tune.report, but {error}"
        ) from None
    return tuple(last.values())
