"""benchmarks/tuning.py without measuring: the replay of figures, and that a stopped run goes on."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from hfaccel.bench import pairs

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
MEASURED = sorted((BENCHMARKS / "results").glob("*-tuning.json"))


@pytest.fixture(scope="module")
def tuning():
    sys.path.insert(0, str(BENCHMARKS))
    import tuning as module

    yield module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def rows(tuning):
    """A made-up machine: one thread costs half, glibc a tenth, waiting passively a twentieth more."""
    from hfaccel.host import read_host

    case = tuning.CASES[0]
    space = case.space(read_host())
    made = [tuning._space_row(case, space)]
    for setting in space.settings:
        relative = 2 / setting.threads
        relative *= {"glibc": 1.1, "mimalloc": 1.02}.get(setting.allocator, 1)
        relative *= 1.05 if setting.wait_policy == "passive" else 1
        relative *= 0.6 if setting.precision == "bf16" else 1
        about = {"name": case.name, "case": setting.label(), "setting": setting.to_dict()}
        made.append({**about, "relative": relative, "spread": 0.01})
    return json.loads(json.dumps(made))  # as a file has them


def test_the_replayed_search_comes_near_to_the_best(tuning, rows, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "SEEDS", 5)
    assert tuning.report(rows) == 0
    said = capsys.readouterr().out
    assert "latency (1,128), 25 trials" in said and "texts: not measured" in said


def test_the_search_comes_near_to_the_best_of_what_was_measured(tuning):
    for file in MEASURED:
        assert tuning.report(json.loads(file.read_text())["rows"]) == 0, file.name


def test_a_search_that_finds_nothing_misses_its_bar(tuning, rows, monkeypatch):
    monkeypatch.setattr(tuning, "SEEDS", 3)
    monkeypatch.setattr(tuning.Search, "run", lambda self, trials: [FOUND(self.space.default)])
    worst = [{**row, "relative": 1.0 if "bf16" in row["case"] else 3.0} for row in rows]
    assert tuning.report(worst) == 1


def FOUND(setting):
    from hfaccel.tune.trials import Trial

    return Trial(0, setting, "complete", 1.0)


def test_a_study_that_is_not_complete_is_not_replayed(tuning, rows, capsys):
    assert tuning.report(rows[:-1]) == 0
    assert "latency (1,128): not measured, or not to its end" in capsys.readouterr().out


def test_a_stopped_run_goes_on(tuning, monkeypatch, tmp_path, capsys):
    from hfaccel.host import read_host

    opened = []

    class Machine:
        def __init__(self, *arguments):
            pass

        @contextmanager
        def open(self, setting):
            opened.append(setting)
            if len(opened) == 6:
                raise KeyboardInterrupt
            yield type("Runner", (), {"sample": lambda self: {"seconds": 1.0}})()

    file = tmp_path / "rows.json"
    file.write_text('{"rows": []}')

    def save(name, rows):
        file.write_text(json.dumps({"rows": json.loads(file.read_text())["rows"] + rows}))

    monkeypatch.setattr(pairs, "SETTLE", 0)
    monkeypatch.setattr(tuning, "ModelMachine", Machine)
    monkeypatch.setattr(tuning, "save", save)
    case, facts = tuning.CASES[1], read_host()
    with pytest.raises(KeyboardInterrupt):
        tuning.measure(case, facts, file)
    tuning.measure(case, facts, file)
    rows = json.loads(file.read_text())["rows"]
    measured = [row for row in rows if row["case"] != tuning.SPACE]
    assert len(measured) == len({row["case"] for row in measured}) == len(case.space(facts).settings)
    assert {row["relative"] for row in measured} == {1.0}
