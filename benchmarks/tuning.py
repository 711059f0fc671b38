"""Every setting of three small spaces of `hfaccel tune` on BERT-base, each against the default in turn; then
the search, replayed on these figures with 50 seeds: how near to the best setting do 15 and 25 trials come?

Takes about 50 minutes on two cores, and prints what is left. A stopped run goes on the same day; later with
--continue FILE. `--replay FILE` measures nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hfaccel.bench import side
from hfaccel.bench.pairs import Sample, take_turn
from hfaccel.bench.setting import Setting
from hfaccel.bench.side import Ground
from hfaccel.bench.work import DOCSTRINGS, Shapes, Texts, Work
from hfaccel.host import HostFacts, read_host
from hfaccel.plan import cpu_budget
from hfaccel.tune.machines import ModelMachine
from hfaccel.tune.objective import Objective
from hfaccel.tune.search import Search
from hfaccel.tune.space import Asked, Axis, Space, make_space
from hfaccel.tune.storage import open_study
from hfaccel.tune.trials import COMPLETE, TrialFailed
from report import check, save

SUBJECT = "random:bert-base"
SPACE = "the space"
TURNS = 3
SEEDS = 50
LEADERS = 3
BARS = {15: 0.95, 25: 0.97}  # of the best setting's speed, median over the seeds
LATENCY, THROUGHPUT = Objective("latency"), Objective("throughput")
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    name: str
    work: Work
    objective: Objective
    asked: Asked

    def space(self, facts: HostFacts) -> Space:
        return make_space(facts, self.asked)


CASES = (
    Case("latency (1,128)", Shapes(1, 128), LATENCY, Asked(accuracy="bf16")),
    Case("throughput (8,32)", Shapes(8, 32), THROUGHPUT, Asked(throughput=True)),
    Case(
        "texts",
        Texts(DOCSTRINGS, 32),
        LATENCY,
        Asked(work="texts", fixed={"wait_policy": None, "huge_pages": "auto"}),
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--continue", dest="earlier", type=Path, metavar="FILE", help="rows of another day")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="replay the search on these rows")
    options = parser.parse_args()
    if options.replay:
        return report(json.loads(options.replay.read_text())["rows"])
    rows = json.loads(options.earlier.read_text())["rows"] if options.earlier else []
    file = save("tuning", rows)
    facts = read_host()
    for case in CASES:
        measure(case, facts, file)
    return report(json.loads(file.read_text())["rows"])


# Measuring


def measure(case: Case, facts: HostFacts, file: Path) -> None:
    """Each setting that the file does not have takes turns with the default, which runs all the time."""
    space = case.space(facts)
    save("tuning", [_space_row(case, space)])
    done = {row["case"] for row in json.loads(file.read_text())["rows"] if row["name"] == case.name}
    left = [setting for setting in space.settings if setting.label() not in done]
    print(f"{case.name}: {len(left)} of {len(space.settings)} settings are left", flush=True)
    if not left:
        return
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(SUBJECT, cpu_budget(facts).threads, 1.0, folder, side.cleared(os.environ))
        machine = ModelMachine(ground, case.work, space.default)
        with machine.open(space.default) as base:
            for number, setting in enumerate(left, 1):
                save("tuning", [_row(case, machine, base, setting)])
                rest = (time.monotonic() - start) / number * (len(left) - number) / 60
                print(f"  {number} of {len(left)}, {rest:.0f} minutes left", flush=True)


def _row(case: Case, machine: ModelMachine, base: Any, setting: Setting) -> Row:
    about = {"name": case.name, "case": setting.label(), "setting": setting.to_dict()}
    try:
        with machine.open(setting) as runner:
            turns = [take_turn([base, runner], number) for number in range(TURNS + 1)][1:]
    except TrialFailed as error:
        return {**about, "relative": None, "reason": str(error)}
    times = [second["seconds"] / first["seconds"] for first, second in turns]
    spread = statistics.stdev(map(math.log, times))
    return {**about, "relative": round(statistics.median(times), 4), "spread": round(spread, 4)}


# Replaying


class Measured:
    """A machine that answers with the figures of a file, and with noise as these had."""

    items = 1

    def __init__(self, rows: Sequence[Row], seed: int) -> None:
        self.relative = {Setting.from_dict(row["setting"]): row["relative"] for row in rows}
        self.noise = statistics.median(row["spread"] for row in rows if row["relative"] is not None)
        self.chance = random.Random(seed)

    @contextlib.contextmanager
    def open(self, setting: Setting) -> Iterator[Answering]:
        if self.relative.get(setting) is None:
            raise TrialFailed("it failed when it was measured")
        yield Answering(self, setting)


class Answering:
    def __init__(self, machine: Measured, setting: Setting) -> None:
        self.machine, self.setting = machine, setting

    def sample(self) -> Sample:
        seconds = self.machine.relative[self.setting] * math.exp(
            self.machine.chance.gauss(0, self.machine.noise)
        )
        return {"seconds": seconds, "calls": [seconds]}


def replay(case: Case, space: Space, rows: Sequence[Row], seed: int) -> Mapping[int, float]:
    """For so many trials: the share of the best setting's speed that the best of the leaders has."""
    machine = Measured(rows, seed)
    with open_study(None, {}, seed) as study:
        found = Search(study, space, case.objective, machine).run(max(BARS))
    best = min(row["relative"] for row in rows if row["relative"] is not None)
    shares = {}
    for trials in BARS:
        complete = [one for one in found[:trials] if one.state == COMPLETE]
        leaders = sorted(complete, key=lambda one: one.score or 0.0)[:LEADERS]
        shares[trials] = best / min(machine.relative[one.setting] for one in [*leaders, found[0]])
    return shares


def report(rows: Sequence[Row]) -> int:
    checked = []
    for case in CASES:
        about = [row for row in rows if row["name"] == case.name]
        space = next((space_of(row) for row in about if row["case"] == SPACE), None)
        mine = [row for row in about if row["case"] != SPACE]
        if space is None or len(mine) < len(space.settings):
            print(f"{case.name}: not measured, or not to its end")
            continue
        seeds = [replay(case, space, mine, seed) for seed in range(SEEDS)]
        for trials, bar in BARS.items():
            median = statistics.median(shares[trials] for shares in seeds)
            checked.append({"name": f"{case.name}, {trials} trials", "bar": bar, "measured": median})
    return check("share of the best setting's speed, median of 50 seeds", checked)


def _space_row(case: Case, space: Space) -> Row:
    """The space of the measured machine, so that the search can be replayed on another one."""
    sizes = {"cores": space.cores, "cores_of_node": space.cores_of_node}
    return {"name": case.name, "case": SPACE, "axes": space.axes, "default": space.default_point, **sizes}


def space_of(row: Row) -> Space:
    axes = tuple(Axis(name, tuple(values), ordered) for name, values, ordered in row["axes"])
    return Space(axes, row["cores"], row["cores_of_node"], row["default"])


if __name__ == "__main__":
    sys.exit(main())
