"""The result file: what may be continued, and that nothing harms it. And two files against each other."""

from __future__ import annotations

import errno
import json
import os
import stat

import numpy as np
import pytest

from hfaccel.bench import results
from hfaccel.bench.cell import cell, failed
from hfaccel.bench.conditions import Conditions
from hfaccel.bench.setting import Setting
from hfaccel.bench.statistics import ratio_of
from hfaccel.bench.verdicts import EQUAL, FASTER, OPEN, SLOWER, compare, differences, only_in_one
from hfaccel.bench.work import Shapes, Texts
from hfaccel.errors import UsageError

TORCH = Setting("torch", allocator="auto")
HOST = {"model": "A CPU", "cores": 2, "kernel_set": "amx", "memory_mib": 100}


def sample(seconds=1.0, **more):
    return {
        "seconds": seconds,
        "calls": [seconds] * 3,
        "facts": {},
        "threads": 2,
        "page_faults": 1.0,
        "peak_memory_mib": 10.0,
        "warm_up": {"calls": 6, "ended": True},
        **more,
    }


def measured(setting=TORCH, work=None, base=(2.0,) * 5, own=(1.0,) * 5, verdict=None):
    samples = [sample(seconds) for seconds in own]
    quiet = Conditions(0.0, 0.0, 0.0)
    return cell(work or Shapes(8, 128), setting, samples, ratio_of(base, own), verdict, quiet, 1e9)


def document(*cells, **more):
    made = results.new("random:tiny", Setting(), {"batch_sizes": [8]}, ["hfaccel", "bench"])
    return made | {"host": HOST, "versions": {"torch": "2.13"}, "cells": list(cells)} | more


def test_a_file_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "a.json"
    wanted = document(measured(), failed(Shapes(1, 8), TORCH, "skipped", "why"))
    results.write(wanted, path)
    assert results.read(path) == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_cell_has_every_field_of_the_format():
    names = """work setting status reason samples_ms p50_ms p90_ms p99_ms spread throughput throughput_unit
        first_token_ms per_token_ms threads page_faults peak_memory_mib flops verified ratio conditions"""
    for found in (measured(), failed(Shapes(1, 8), TORCH, "failed", "why")):
        assert set(names.split()) <= set(found)
    found = measured()
    assert found["throughput"] == 8.0 and found["p50_ms"] == 1000.0 and found["p99_ms"] is None
    assert found["ratio"]["median"] == 2.0 and found["status"] == "measured"


def test_what_a_process_found_out_is_part_of_the_work_but_not_of_the_identity():
    work = Texts("docstrings", 4)
    samples = [sample(facts={"tokens": 9, "padded_tokens": 12})] * 2
    found = cell(work, TORCH, samples, None, None, Conditions(None, None, None), None)
    assert found["work"]["padded_tokens"] == 12
    assert results.identity_of(found) == results.identity_of(failed(work, TORCH, "failed", ""))


def test_a_warm_up_that_did_not_end_is_noted():
    samples = [sample(warm_up={"calls": 9, "ended": False})] * 2
    found = cell(Shapes(1, 8), TORCH, samples, None, None, Conditions(None, None, None), None)
    assert found["conditions"]["notes"] == ["calls still became faster when measuring began"]


def test_failed_cells_are_measured_again_and_others_are_not():
    cells = [failed(Shapes(number, 8), TORCH, status, "") for number, status in enumerate(results.FINAL, 1)]
    again = failed(Shapes(9, 8), TORCH, "failed", "")
    found = document(*cells, again)
    assert results.done(found) == {results.identity_of(one) for one in cells}
    results.put(found, measured(work=Shapes(9, 8)))
    assert [one["status"] for one in found["cells"]] == [*results.FINAL, "measured"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a result must be JSON"),
        ("[]", "a result must be written by hfaccel bench"),
        ('{"format": 1}', "a result must be written by hfaccel bench"),
        ('{"format": 2, "cells": []}', "must have format 1, but .* has 2; use the version of hfaccel"),
        ('{"format": 1, "cells": [{"work": {"kind": "x"}, "setting": {}}]}', "work must be one of"),
    ],
)
def test_other_files_are_refused(tmp_path, text, said):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        results.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="a result must be a readable file"):
        results.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"subject": "other"}, "the same subject"),
        ({"host": {**HOST, "model": "Another CPU"}}, "the same host's model"),
        ({"host": {**HOST, "cores": 4}}, "the same host's cores"),
        ({"versions": {"torch": "2.14"}}, "the same version of torch"),
        ({"baseline": Setting("torch").to_dict()}, "the same baseline"),
    ],
)
def test_cells_that_would_not_compare_are_not_continued(changed, said):
    with pytest.raises(UsageError, match=said + ".* name another file with --json, or remove this one"):
        results.continued(document(measured(), **changed), document(), "a.json")


def test_a_study_is_continued_with_other_axes_and_more_memory():
    found = document(measured(), host={**HOST, "memory_mib": 50}, limits={"bandwidth_gb_s": 1})
    wanted = document(axes={"batch_sizes": [1]})
    assert results.continued(found, wanted, "a.json") == wanted | {
        "cells": found["cells"],
        "limits": found["limits"],
    }


def test_a_full_disk_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write(document(), path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(results.WriteError, match=r"No space left on device.*held before is kept"):
        results.write(document(measured()), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_an_interruption_while_writing_keeps_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    results.write(document(), path)

    def interrupted(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.write(document(measured()), path)
    assert json.loads(path.read_text())["cells"] == []
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(results.WriteError, match="No such file or directory") as raised:
        results.write(document(), tmp_path / "no" / "a.json")
    assert raised.value.exit_code == 1 and "\n" not in str(raised.value)


def test_a_file_keeps_its_rights_and_a_new_one_has_the_usual_ones(tmp_path):
    path = tmp_path / "a.json"
    results.write(document(), path)
    (tmp_path / "usual").write_text("")
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    path.chmod(0o640)
    results.write(document(), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_what_json_cannot_hold_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(document(limits={"bandwidth_gb_s": float("nan")}), tmp_path / "a.json")
    assert list(tmp_path.iterdir()) == []


# Two files


def with_ratio(factor, seed=0, noise=0.02, **more):
    generator = np.random.default_rng(seed)
    own = np.exp(generator.normal(0, noise, 7))
    return measured(base=tuple(own * factor * np.exp(generator.normal(0, noise, 7))), own=tuple(own), **more)


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [(1.5, 2.5, FASTER), (2.5, 1.5, SLOWER), (2.0, 2.02, EQUAL), (1.0, 2.0, FASTER)],
)
def test_a_verdict_compares_the_ratios_of_both_files(first, second, verdict):
    (row,) = compare(document(with_ratio(first)), document(with_ratio(second, seed=1)))
    assert row.verdict == verdict
    assert row.change == pytest.approx(second / first, rel=0.05) and row.low < row.change < row.high


def test_intervals_with_a_ratio_in_common_are_no_difference():
    cells = [measured(), measured()]
    for cell_, (median, low, high) in zip(cells, [(2.0, 1.9, 2.6), (2.5, 2.5, 2.7)], strict=True):
        cell_["ratio"] |= {"median": median, "low": low, "high": high}
    (row,) = compare(document(cells[0]), document(cells[1]))
    assert row.verdict == EQUAL and row.change == 1.25 and row.low < 1 < row.high


def test_what_was_disturbed_gets_no_verdict():
    cells = measured(own=(1.0,) * 5), measured(own=(0.2,) * 5)
    for disturbed, verdict in ((False, FASTER), (True, OPEN)):
        cells[1]["conditions"]["disturbed"] = disturbed
        (row,) = compare(document(cells[0]), document(cells[1]))
        assert row.verdict == verdict


@pytest.mark.parametrize("cells", [[{}], [{"work": {"kind": "shapes"}}], [3], {"a": 1}, 5])
def test_a_file_that_was_changed_is_refused(cells, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document() | {"cells": cells}))
    with pytest.raises(UsageError, match="was changed since"):
        results.read(path)


def test_equal_files_have_no_verdict_in_nearly_all_comparisons():
    rows = [
        compare(document(with_ratio(2.0, seed, 0.1)), document(with_ratio(2.0, seed + 1000, 0.1)))[0]
        for seed in range(100)
    ]
    assert sum(row.verdict != EQUAL for row in rows) <= 5


@pytest.mark.parametrize(("status", "place"), [("failed", "second"), ("skipped", "first")])
def test_a_cell_that_was_not_measured_has_no_verdict(status, place):
    one, two = with_ratio(2.0), failed(Shapes(8, 128), TORCH, status, "why")
    (row,) = compare(*(map(document, (one, two) if place == "second" else (two, one))))
    assert (row.verdict, row.reason, row.change) == (OPEN, f"{status} in the {place}", None)


def test_cells_are_matched_by_work_and_setting():
    base = measured(setting=Setting())
    first = document(base, with_ratio(2.0), with_ratio(2.0, work=Shapes(1, 8)))
    second = document(base, with_ratio(2.0, work=Shapes(1, 8)), with_ratio(2.0, work=Shapes(2, 8)))
    assert [row.work for row in compare(first, second)] == ["(1,8)"]
    assert only_in_one(first, second) == (1, 1)


def test_what_else_differs_is_said():
    one, two = document(), document(host={**HOST, "cores": 4}, versions={"torch": "2.14"})
    assert differences(one, two) == ["host cores: 2 and 4", "versions torch: 2.13 and 2.14"]
    assert differences(one, one) == []
