"""One cell of the result file, from the samples of its side. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hfaccel.bench.answers import Verdict
from hfaccel.bench.conditions import Conditions
from hfaccel.bench.pairs import Sample
from hfaccel.bench.results import Document
from hfaccel.bench.setting import Setting
from hfaccel.bench.statistics import Ratio, percentile, spread
from hfaccel.bench.work import Work, describe

KEPT_CALLS = 2000  # of the times of single calls, in a file; the figures are of all
EMPTY: Document = dict.fromkeys(
    (
        *("p50_ms", "p90_ms", "p99_ms", "spread", "throughput", "first_token_ms", "per_token_ms", "threads"),
        *("page_faults", "peak_memory_mib", "flops", "verified", "ratio"),
    )
)
NOTHING = Conditions(None, None, None)


def failed(work: Work, setting: Setting, status: str, reason: str) -> Document:
    """A cell without figures. `status`: "failed" or "skipped"."""
    head = {"work": describe(work), "setting": setting.to_dict(), "status": status, "reason": reason}
    rest = {"samples_ms": [], "throughput_unit": work.unit, "conditions": NOTHING.to_dict()}
    return {**head, **EMPTY, **rest}


def cell(
    work: Work,
    setting: Setting,
    samples: Sequence[Sample],
    ratio: Ratio | None,
    verdict: Verdict | None,
    during: Conditions,
    flops: float | None,
) -> Document:
    problem = verdict.problem if verdict else ""
    last = samples[-1]
    return {
        **failed(work, setting, "wrong" if problem else "measured", problem),
        "work": {**describe(work), **last["facts"]},
        **_times([sample["seconds"] for sample in samples], _all(samples, "calls"), work),
        "first_token_ms": _median_ms(_all(samples, "first_token")),
        "per_token_ms": _median_ms(_all(samples, "per_token")),
        "threads": last["threads"],
        "page_faults": float(np.median([sample["page_faults"] for sample in samples])),
        "peak_memory_mib": _rounded(last["peak_memory_mib"], 1),
        "flops": flops,
        "verified": verdict.to_dict() if verdict else None,
        "ratio": replace(ratio, disturbed=during.disturbed).to_dict() if ratio else None,
        "warm_up_calls": last["warm_up"]["calls"],
        "conditions": _conditions(during, last),
    }


def _all(samples: Sequence[Sample], name: str) -> list[float]:
    return [value for sample in samples for value in sample.get(name, ())]


def _times(seconds: Sequence[float], calls: Sequence[float], work: Work) -> Document:
    """`seconds` are those in which all instances do the work once, `calls` those of single calls."""
    milliseconds = [call * 1e3 for call in calls]
    return {
        "samples_ms": [round(value, 4) for value in milliseconds[:KEPT_CALLS]],
        "p50_ms": _rounded(float(np.median(milliseconds))),
        "p90_ms": _rounded(percentile(milliseconds, 0.9)),
        "p99_ms": _rounded(percentile(milliseconds, 0.99)),
        "spread": _rounded(spread(milliseconds)),
        "throughput": _rounded(work.items / float(np.median(seconds))),
    }


def _median_ms(seconds: Sequence[float]) -> float | None:
    return _rounded(float(np.median(seconds)) * 1e3) if seconds else None


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _conditions(during: Conditions, last: Sample) -> Document:
    described = during.to_dict()
    notes = list(during.notes)
    if during.disturbed:
        notes.append("no difference is claimed, because the group was disturbed")
    if not last["warm_up"]["ended"]:
        notes.append("calls still became faster when measuring began")
    return {**described, "notes": notes}
