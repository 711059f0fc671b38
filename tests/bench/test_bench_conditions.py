"""What else happened on the machine: differences of counters, and counters of captured trees."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench.conditions import TICK, Conditions, Snapshot, between, look
from hfaccel.bench.statistics import Ratio
from hfaccel.host import Tree

counter = st.none() | st.floats(0, 1e6)
SNAPSHOTS = st.builds(Snapshot, st.floats(0, 1e6), counter, counter, counter, st.floats(0, 1e6), counter)
QUIET = Snapshot(100.0, 50.0, 1.0, 1000.0, 10.0, 5.0)


def test_nothing_is_noted_of_a_quiet_machine():
    after = QUIET._replace(moment=110.0, busy=70.0, total=1020.0, own=30.0)
    assert between(QUIET, after) == Conditions(0.0, 0.0, 0.0)
    assert between(QUIET, after).to_dict()["notes"] == []


def test_each_disturbance_is_noted():
    after = Snapshot(110.0, 70.0, 3.0, 1020.0, 15.0, 45.0)
    found = between(QUIET, after)
    assert found == Conditions(0.1, 40.0, 1.5)
    assert found.notes == (
        "the hypervisor took 10% of the CPU time",
        "the CPU quota stopped the group for 40 ms",
        "other programs used 1.5 CPUs",
    )


@pytest.mark.parametrize(
    ("found", "disturbed"),
    [
        (Conditions(None, None, None), False),
        (Conditions(0.02, 0.0, 0.2), False),
        (Conditions(0.06, 0.0, 0.0), True),
        (Conditions(0.0, 5.0, 0.0), True),
        (Conditions(0.0, None, 0.4), True),
    ],
)
def test_a_disturbed_group_claims_nothing(found, disturbed):
    assert found.disturbed is found.to_dict()["disturbed"] is disturbed
    ratio = Ratio(2.0, 1.9, 2.1, 5, found.disturbed)
    assert ratio.significant is not disturbed


@given(SNAPSHOTS, SNAPSHOTS)
def test_what_is_not_counted_is_none_and_nothing_is_negative(before, after):
    found = between(before, after)
    assert all(value is None or value >= 0 for value in found)
    if before.busy is None or after.busy is None:
        assert found.load_of_others is None
    if before.throttled_ms is None or after.throttled_ms is None:
        assert found.throttled_ms is None


def tree(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / name.replace("_", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Tree(tmp_path)


def test_counters_are_read_from_proc(tmp_path):
    own = "1 (a b) R " + " ".join(["0"] * 10) + f" {3 * TICK} {TICK} 0 0 0 0"
    found = look(
        [7],
        tree(
            tmp_path,
            proc_stat=f"cpu  {TICK} 0 {TICK} {5 * TICK} {TICK} 0 0 {2 * TICK} 9 9\n",
            proc_self_stat=own,
            proc_7_stat=own,
        ),
    )
    assert (found.busy, found.stolen, found.total, found.own) == (2.0, 2.0, 10.0, 8.0)
    assert found.throttled_ms is None


def test_throttled_time_is_read_in_both_versions_of_cgroups(tmp_path):
    folder = tmp_path / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "cpu.stat").write_text("nr_throttled 3\nthrottled_usec 2500\n")
    assert look([], Tree(tmp_path)).throttled_ms == 2.5
    (folder / "cpu.stat").unlink()
    (folder / "cpu").mkdir()
    (folder / "cpu/cpu.stat").write_text("nr_throttled 3\nthrottled_time 4000000\n")
    assert look([], Tree(tmp_path)).throttled_ms == 4.0


def test_an_empty_tree_counts_nothing(tmp_path):
    found = look([1], Tree(tmp_path))
    assert found[1:4] == (None, None, None) and found.own == 0.0


def test_work_of_this_process_is_its_own():
    before = look([])
    while look([]).own < before.own + 2 / TICK:
        sum(range(10000))
    assert between(before, look([os.getpid()])).load_of_others is not None
