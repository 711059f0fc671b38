"""What sides have computed, against what a baseline has: arrays; or generated tokens, which the stock model
reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hfaccel.bench import answers
from hfaccel.bench.side import Ground, judge, output
from hfaccel.bench.work import Generation, Work
from hfaccel.bench.workers import Limits, WatchedWorker


def verdicts(
    ground: Ground, work: Work, base: str, others: Mapping[str, str], limits: Limits
) -> dict[str, answers.Verdict]:
    """`base`: the baseline's name; `others`: names of sides, and their precisions. All have left results.

    Raises HfaccelError where tokens cannot be judged."""
    if isinstance(work, Generation):
        regrets = _regrets(ground, work, [base, *others], limits)
        # The baseline's own choices differ from the judge's where an end of text is put off.
        beyond = {name: max(0.0, regrets[name] - regrets[base]) for name in others}
        return {name: answers.judge_regret(beyond[name], precision) for name, precision in others.items()}
    expected = _load(ground, base)
    return {name: answers.judge(expected, _load(ground, name), each) for name, each in others.items()}


def _load(ground: Ground, name: str) -> answers.Array:
    found: answers.Array = np.load(output(ground, name))
    return found


def _regrets(ground: Ground, work: Generation, names: list[str], limits: Limits) -> dict[str, float]:
    files = {name: output(ground, name) for name in names}
    with WatchedWorker(judge(ground, work, files), limits) as worker:
        regrets: dict[str, float] = worker.sample()["regrets"]
    return regrets
