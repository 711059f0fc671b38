"""A result file of a study as typed values. What a file does not tell is None, never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hfaccel.bench import results
from hfaccel.bench.setting import Setting
from hfaccel.errors import UsageError

STATES = ("measured", "wrong", "failed", "skipped")
Record = Mapping[str, object]


@dataclass(frozen=True)
class Ratio:
    """How many times faster than the setting `to`: the median over pairs, and its interval of confidence."""

    to: str
    median: float
    low: float | None
    high: float | None
    significant: bool | None
    pairs: float | None


@dataclass(frozen=True)
class Cell:
    """One piece of work in one setting. `numbers` holds what was measured, by the names of the file."""

    work: Record
    setting: Setting
    status: str
    reason: str
    samples_ms: tuple[float, ...]
    numbers: Mapping[str, float]  # without those that are not known
    throughput_unit: str
    ratio: Ratio | None
    notes: tuple[str, ...]

    def number(self, name: str) -> float | None:
        return self.numbers.get(name)


@dataclass(frozen=True)
class Trial:
    number: int
    setting: Setting
    value: float | None
    state: str  # complete | pruned | failed
    reason: str
    seconds: float | None


@dataclass(frozen=True)
class Tuning:
    objective: str
    trials: tuple[Trial, ...]
    best: int | None  # the number of a trial
    default: int | None
    importances: Mapping[str, float]


@dataclass(frozen=True)
class Result:
    command: tuple[str, ...]
    date: str
    subject: str
    host: Record
    versions: Record
    axes: Record
    baseline: Setting
    gemm_gflops: Mapping[str, float]  # by precision
    bandwidth_gb_s: float | None
    cells: tuple[Cell, ...] = field(repr=False)
    tuning: Tuning | None = field(repr=False)


# In a cell's record under these names; with a dot: within a record of it.
NUMBERS = (
    *("p50_ms", "p90_ms", "p99_ms", "spread", "throughput", "first_token_ms", "per_token_ms"),
    *("threads", "page_faults", "peak_memory_mib", "flops", "bytes"),
    *("verified.largest_difference", "verified.allowed"),
    *("conditions.steal", "conditions.throttled_ms", "conditions.load_of_others"),
)


def load(path: Path) -> Result:
    """Read a file. Raises UsageError for anything but a result, and for values that break a rule."""
    return read(results.read(path))


def read(document: Record) -> Result:
    """The result that a document describes."""
    limits = _record(document, "limits")
    tuning = _record(document, "tuning")
    return Result(
        command=_texts(document, "command"),
        date=_text(document, "date"),
        subject=_text(document, "subject"),
        host=_record(document, "host"),
        versions=_record(document, "versions"),
        axes=_record(document, "axes"),
        baseline=_setting(document, "baseline"),
        gemm_gflops=_numbers(_record(limits, "gemm_gflops")),
        bandwidth_gb_s=_number(limits, "bandwidth_gb_s"),
        cells=tuple(map(_cell, _records(document, "cells"))),
        tuning=_tuning(tuning) if tuning else None,
    )


def _cell(record: Record) -> Cell:
    status = _text(record, "status")
    if status not in STATES:
        raise UsageError(f"the status of a cell must be one of {', '.join(STATES)}, but got {status!r}")
    found = {name: _inside(record, name) for name in NUMBERS}
    ratio = _record(record, "ratio")
    return Cell(
        work=_record(record, "work"),
        setting=_setting(record, "setting"),
        status=status,
        reason=_text(record, "reason"),
        samples_ms=tuple(_numbers_of(record, "samples_ms")),
        numbers={name.rpartition(".")[2]: value for name, value in found.items() if value is not None},
        throughput_unit=_text(record, "throughput_unit"),
        ratio=_ratio(ratio) if _number(ratio, "median") is not None else None,
        notes=_texts(_record(record, "conditions"), "notes"),
    )


def _ratio(record: Record) -> Ratio:
    significant = record.get("significant")
    return Ratio(
        to=_text(record, "to"),
        median=_number(record, "median") or 0.0,
        low=_number(record, "low"),
        high=_number(record, "high"),
        significant=significant if isinstance(significant, bool) else None,
        pairs=_number(record, "pairs"),
    )


def _tuning(record: Record) -> Tuning:
    best, default = _number(record, "best"), _number(record, "default")
    return Tuning(
        objective=_text(record, "objective"),
        trials=tuple(_trial(place, trial) for place, trial in enumerate(_records(record, "trials"))),
        best=None if best is None else int(best),
        default=None if default is None else int(default),
        importances=_numbers(_record(record, "importances")),
    )


def _trial(place: int, record: Record) -> Trial:
    number = _number(record, "number")
    return Trial(
        number=place if number is None else int(number),
        setting=_setting(record, "setting"),
        value=_number(record, "value"),
        state=_text(record, "state"),
        reason=_text(record, "reason"),
        seconds=_number(record, "seconds"),
    )


# Values of a record, None or empty where there are none


def _setting(record: Record, name: str) -> Setting:
    return Setting.from_dict(_record(record, name))


def _inside(record: Record, name: str) -> float | None:
    outer, _, inner = name.rpartition(".")
    return _number(_record(record, outer) if outer else record, inner)


def _number(record: Record, name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(name, "a finite number or null", value)
    return value


def _text(record: Record, name: str) -> str:
    value = record.get(name)
    if not isinstance(value, str | None):
        raise _wrong(name, "a text or null", value)
    return value or ""


def _record(record: Record, name: str) -> Record:
    value = record.get(name)
    if not isinstance(value, dict | None):
        raise _wrong(name, "an object or null", value)
    return value or {}


def _list(record: Record, name: str) -> list[object]:
    value = record.get(name)
    if not isinstance(value, list | None):
        raise _wrong(name, "a list or null", value)
    return value or []


def _records(record: Record, name: str) -> list[Record]:
    return [_record({name: value}, name) for value in _list(record, name)]


def _texts(record: Record, name: str) -> tuple[str, ...]:
    return tuple(str(value) for value in _list(record, name))


def _numbers(record: Record) -> dict[str, float]:
    found = {name: _number(record, name) for name in record}
    return {name: value for name, value in found.items() if value is not None}


def _numbers_of(record: Record, name: str) -> list[float]:
    found = [_number({name: value}, name) for value in _list(record, name)]
    return [value for value in found if value is not None]


def _wrong(name: str, rule: str, value: object) -> UsageError:
    return UsageError(f"`{name}` of a result must be {rule}, but got {value!r}")
