"""What a search for the best settings did, and which settings mattered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from hfaccel.bench.report.model import Axis, Bar, Bars, Figure, Look, Plot, Point, Series, make_figure
from hfaccel.bench.report.reading import Result, Trial, Tuning
from hfaccel.bench.report.wording import percent, short

LOOKS = {
    "complete": Look("s1", "", "circle"),
    "pruned": Look("s2", "", "down"),
    "failed": Look("s7", "", "cross"),
    "default": Look("s3", "", "diamond"),
    "best": Look("s4", "", "star"),
    "default and best": Look("s4", "", "star"),
}
BEST_SO_FAR = Look("s0")
READING = "A mark is one trial. {better}"
BETTER = {"higher": max, "lower": min}


def history(result: Result) -> Figure | None:
    """Values by trial. Needs two that are known."""
    tuning = result.tuning
    known = [trial for trial in tuning.trials if trial.value is not None] if tuning else []
    if tuning is None or len(known) < 2:
        return None
    better = direction(tuning)
    title = tuning.objective[:1].upper() + tuning.objective[1:] or "Objective"
    plot = Plot(title, Axis("trial"), Axis("value"), _series(tuning, known, better))
    line = f"The line is the best value found so far; {better} is better." if better else ""
    reading = READING.format(better=line).strip()
    return make_figure("tuning-history", "Search for the best setting", reading, [plot], _said(tuning))


def direction(tuning: Tuning) -> str:
    """Whether a "higher" or a "lower" value is better, by what the best trial is of all; "" where that cannot
    be told."""
    values = [trial.value for trial in tuning.trials if trial.value is not None and trial.state == "complete"]
    best = _value(tuning, tuning.best)
    if best is None or not values or max(values) == min(values):
        return ""
    return next((word for word, pick in BETTER.items() if pick(values) == best), "")


def _value(tuning: Tuning, number: int | None) -> float | None:
    return next((trial.value for trial in tuning.trials if trial.number == number), None)


def _series(tuning: Tuning, known: Sequence[Trial], better: str) -> tuple[Series, ...]:
    groups: dict[str, list[Trial]] = {}
    for trial in known:
        groups.setdefault(mark(tuning, trial) or trial.state, []).append(trial)
    marks = [
        Series(name, LOOKS.get(name, LOOKS["complete"]), tuple(map(_point, group)), False)
        for name, group in groups.items()
    ]
    line = [Series("best so far", BEST_SO_FAR, best_so_far(known, better))] if better else []
    return (*line, *marks)


def mark(tuning: Tuning, trial: Trial) -> str:
    """What is special about a trial: "default", "best", both, or ""."""
    names = {"default": tuning.default, "best": tuning.best}
    return " and ".join(name for name, number in names.items() if number == trial.number)


def best_so_far(trials: Sequence[Trial], better: str) -> tuple[Point, ...]:
    """A line of steps over the complete trials, up to the last trial."""
    points: list[Point] = []
    for trial in sorted(trials, key=lambda trial: trial.number):
        if points:
            points.append(Point(trial.number, points[-1].y))
        if trial.state == "complete" and trial.value is not None:
            y = BETTER[better](trial.value, points[-1].y) if points else trial.value
            points.append(Point(trial.number, y))
    return tuple(points)


def _point(trial: Trial) -> Point:
    words = [f"trial {trial.number}", trial.setting.label(), trial.state, trial.reason]
    value = trial.value or 0.0
    tip = ", ".join([*filter(None, words), short(value)])
    return Point(trial.number, value, hollow=trial.state != "complete", tip=tip)


def _said(tuning: Tuning) -> list[str]:
    counts = Counter(trial.state or "of unknown state" for trial in tuning.trials)
    said = [f"Trials: {', '.join(f'{count} {state}' for state, count in counts.items())}."]
    best, default = _value(tuning, tuning.best), _value(tuning, tuning.default)
    if best is not None and default is not None:
        said.append(f"Best {short(best)}, default {short(default)}.")
    return [" ".join(said)]


def importances(result: Result) -> Figure | None:
    """A bar for each setting, the most important first."""
    shares = result.tuning.importances if result.tuning else {}
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    bars = tuple(
        Bar(name.replace("_", " "), share, percent(share), colour="s1")
        for name, share in ordered
        if share > 0
    )
    panels = [Bars("Importance", "share of the variation between trials", bars)] if bars else []
    reading = "How much of the variation between trials each setting explains."
    return make_figure("tuning-importances", "Which settings mattered", reading, panels, [])
