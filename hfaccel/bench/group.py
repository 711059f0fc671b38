"""Measuring one group: a baseline and some settings on the same work, in turn, until the ratios are clear."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hfaccel.bench import answers, conditions
from hfaccel.bench.cell import cell, failed
from hfaccel.bench.grid import BASELINE, Group
from hfaccel.bench.judging import verdicts
from hfaccel.bench.pairs import Sample, take_turn
from hfaccel.bench.results import Document
from hfaccel.bench.setting import Setting
from hfaccel.bench.side import Ground, sides, threads_wanted
from hfaccel.bench.statistics import LOOKS, Ratio, ratio_of
from hfaccel.bench.work import Script
from hfaccel.bench.workers import Crew, Limits
from hfaccel.errors import HfaccelError


@dataclass
class Side:
    """One setting while it is measured."""

    setting: Setting
    name: str
    crew: Crew
    samples: list[Sample] = field(default_factory=list)


def measure(
    ground: Ground, group: Group, pairs: int, limits: Limits, progress: Callable[[str], None] = lambda _: None
) -> list[Document]:
    """The cells of the baseline and of every setting of the group."""
    with contextlib.ExitStack() as stack:
        found = []
        for number, setting in enumerate((BASELINE, *group.settings)):
            progress(f"{group.work.label()}: starting {setting.label()}")
            started = Crew(sides(ground, group.work, setting, f"side{number}"), limits)
            found.append(Side(setting, f"side{number}", stack.enter_context(started)))
        progress(f"{group.work.label()}: measuring")
        before = conditions.look(_processes(found))
        _take_turns(found, pairs)
        during = conditions.between(before, conditions.look(_processes(found)))
    judged = _verdicts(ground, group, found, limits)
    return [_cell(ground, group, found[0], side, judged.get(side.name), during) for side in found]


def _processes(found: list[Side]) -> list[int]:
    return [process for side in found for process in side.crew.processes()]


def _take_turns(found: list[Side], pairs: int) -> None:
    """The first turn does not count. Without a baseline nothing can be said of the others."""
    take_turn([side.crew for side in found], 0)
    for number in range(1, LOOKS * pairs + 1):
        living = [side for side in found if side.crew.alive]
        if not found[0].crew.alive or (len(living) == 1 and number > pairs):
            return
        for side, sample in zip(living, take_turn([side.crew for side in living], number), strict=True):
            side.samples += [sample] if sample else []
        if number % pairs == 0 and all(_is_settled(found[0], side) for side in living[1:] if side.crew.alive):
            return


def _is_settled(base: Side, side: Side) -> bool:
    ratio = _ratio(base, side)
    return ratio is not None and ratio.settled


def _ratio(base: Side, side: Side) -> Ratio | None:
    """Of the turns in which both gave a sample: sides drop out, but never come back."""
    count = min(len(base.samples), len(side.samples))
    seconds = [[sample["seconds"] for sample in one.samples[:count]] for one in (base, side)]
    return ratio_of(*seconds)


# Results


def _verdicts(
    ground: Ground, group: Group, found: list[Side], limits: Limits
) -> Mapping[str, answers.Verdict]:
    others = [side for side in found[1:] if side.samples]
    if isinstance(group.work, Script) or not found[0].samples or not others:
        return {}
    precisions = {side.name: side.setting.precision for side in others}
    try:
        return verdicts(ground, group.work, found[0].name, precisions, limits)
    except HfaccelError as error:
        for side in others:
            side.crew.failure = f"its tokens could not be judged: {error}"
        return {}


def _cell(
    ground: Ground,
    group: Group,
    base: Side,
    side: Side,
    verdict: answers.Verdict | None,
    during: conditions.Conditions,
) -> Document:
    problem = side.crew.failure or _thread_problem(ground, side)
    if side.crew.skipped:
        return failed(group.work, side.setting, "skipped", side.crew.skipped)
    if problem:
        return failed(group.work, side.setting, "failed", problem)
    if not base.crew.alive:
        reason = base.crew.failure or base.crew.skipped
        return failed(group.work, side.setting, "failed", f"the baseline failed: {reason}")
    ratio = None if side is base else _ratio(base, side)
    flops = base.samples[0]["flops"]
    return cell(group.work, side.setting, side.samples, ratio, verdict, during, flops)


def _thread_problem(ground: Ground, side: Side) -> str:
    """Sides with other numbers of threads than asked for would not compare."""
    wanted = threads_wanted(ground, side.setting)
    counts = {sample["threads"] for sample in side.samples} - {None}
    if wanted is None or counts <= {wanted}:
        return ""
    return f"it must have {wanted} threads, but has {', '.join(map(str, sorted(counts)))}"
