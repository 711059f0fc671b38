"""The place of a rank among those that torchrun started: LOCAL_RANK and LOCAL_WORLD_SIZE."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from topologies import check_slots, facts_of, hosts, make_topology, usable

from hfaccel.host import read_host
from hfaccel.plan import Goal, Request, make_plan, rank_slot

XEON = read_host(Path(__file__).parent.parent / "hosts/xeon-2-sockets.txt")
LONG = "1" * 5000  # Python converts no more than 4300 digits


def ranks(rank, size):
    return {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size)}


def limited(facts, **changes):
    return facts._replace(limits=facts.limits._replace(**changes))


@given(hosts(), st.data())
def test_ranks_share_the_cores_between_them(facts, data):
    size = data.draw(st.integers(2, 30))
    slots = [rank_slot(facts, ranks(rank, size)) for rank in range(size)]
    if size > len(usable(facts)):
        assert slots == [None] * size
        return
    assert not any(slot.asked for slot in slots)
    check_slots(facts, Request(instances=size), [slot._replace(asked=True) for slot in slots])


def test_a_rank_has_its_part_of_the_machine():
    slot = rank_slot(XEON, ranks(1, 2))
    assert (slot.instance, slot.instances, slot.cpus, slot.threads) == (1, 2, (4, 5, 6, 7), 4)


@pytest.mark.parametrize(
    ("rank", "size"),
    [
        *(
            (rank, "2")
            for rank in ("", "x", "-1", "2", "5", " 0", "0 ", "0.0", "0x0", "1e0", "+1", "²", LONG)
        ),
        *(("0", size) for size in ("", "x", "-2", "0", "1", " 2", "2.0", LONG)),
        (LONG, LONG + "1"),
    ],
)
def test_nonsense_is_ignored(rank, size):
    assert rank_slot(XEON, {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}) is None


@pytest.mark.parametrize("environment", [{}, {"LOCAL_RANK": "0"}, {"LOCAL_WORLD_SIZE": "2"}, {"RANK": "0"}])
def test_one_of_the_variables_is_not_enough(environment):
    assert rank_slot(XEON, environment) is None


@pytest.mark.parametrize(
    ("own", "parents", "has_place"),
    [
        (range(8), range(16), False),  # numactl or mpirun has bound it
        (range(16), range(16), True),
        (range(8), range(8), True),  # the whole job is bound, not this rank
        (range(8), (), True),  # the parent's mask cannot be read
        (range(8), range(4, 16), True),  # the parent's mask is another one, not a larger one
    ],
)
def test_a_rank_that_is_bound_already_is_left_alone(own, parents, has_place):
    facts = limited(XEON, affinity=tuple(own), parent_affinity=tuple(parents))
    assert (rank_slot(facts, ranks(0, 2)) is not None) == has_place


def test_more_ranks_than_cores_have_no_places():
    assert rank_slot(XEON, ranks(7, 8)).cpus == (7,)
    assert rank_slot(XEON, ranks(0, 9)) is None


def test_a_rank_is_planned_within_its_place():
    plan = make_plan(XEON, Goal("process", slot=rank_slot(XEON, ranks(1, 2))))
    assert plan["affinity"].value == (4, 5, 6, 7)
    assert plan["threads"].value == 4
    assert str(plan["memory_policy"].value) == "preferred:1"
    assert {choice.source for choice in plan.choices} == {"rule"}


def test_a_rank_keeps_what_its_environment_says():
    environment = {"OMP_NUM_THREADS": "3", "GOMP_CPU_AFFINITY": "0-2"}
    plan = make_plan(XEON, Goal("process", {}, environment, slot=rank_slot(XEON, ranks(1, 2))))
    assert (plan["threads"].value, plan["threads"].source) == (None, "environment")
    assert (plan["affinity"].value, plan["affinity"].source) == (None, "environment")


@pytest.mark.parametrize(
    ("environment", "advised"),
    [
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "none"}, True),
        ({"OMP_NUM_THREADS": "1"}, False),
        ({"OMP_NUM_THREADS": "2", "TORCHELASTIC_RUN_ID": "none"}, False),
    ],
)
def test_one_thread_set_by_torchrun_is_kept_with_advice(environment, advised):
    plan = make_plan(XEON, Goal("process", {}, environment, slot=rank_slot(XEON, ranks(1, 2))))
    assert (plan["threads"].value, plan["threads"].source) == (None, "environment")
    assert ("start it with OMP_NUM_THREADS=4" in plan["threads"].reason) == advised


def test_ranks_stay_off_efficiency_cores():
    hybrid = facts_of(make_topology((6,), small=(4, 5)))
    assert [rank_slot(hybrid, ranks(rank, 2)).cpus for rank in range(2)] == [(0, 1), (2, 3)]
    assert rank_slot(hybrid, ranks(0, 5)) is None
