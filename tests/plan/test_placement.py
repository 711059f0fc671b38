"""The places of several instances: disjoint by cores, within the mask, on one node where they fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from topologies import check_slots, facts_of, few, hosts, make_topology, usable

from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.plan import Request, advice, place

HOSTS = Path(__file__).parent.parent / "hosts"
XEON = read_host(HOSTS / "xeon-2-sockets.txt")  # two nodes of four cores, siblings 8 apart
modes = st.sampled_from([None, "latency", "throughput"])
sizes = st.none() | st.integers(1, 8)


def requests(facts):
    mask = facts.limits.affinity
    nodes = facts.topology.nodes_of(mask)
    return st.builds(
        Request,
        sizes,
        sizes,
        st.none() | st.sets(st.sampled_from(nodes), min_size=1).map(lambda some: tuple(sorted(some))),
        st.none(),
        st.booleans(),
        modes,
    )


def cpus(facts, **request):
    return [slot.cpus for slot in place(facts, Request(**request))]


# Whatever the host and the request


@given(hosts(), st.data())
def test_places_are_right_or_refused(facts, data):
    request = data.draw(requests(facts))
    assume(request != Request())
    total = len(usable(facts, request))
    needed = (request.instances or 1) * (request.cores_per_instance or 1)
    try:
        slots = place(facts, request)
    except UsageError as error:
        assert needed > total
        assert f"but {request.instances or 'an instance'}" in str(error)
        assert f"{total} cores may be used" in str(error)
        return
    assert needed <= total
    check_slots(facts, request, slots)


@given(hosts(), st.data())
@few
def test_cpus_that_are_named_are_all_used(facts, data):
    named = tuple(sorted(data.draw(st.sets(st.sampled_from(facts.limits.affinity), min_size=1))))
    request = Request(cpus=named, siblings=data.draw(st.booleans()))
    slots = place(facts, request)
    check_slots(facts, request, slots)
    assert [slot.cpus for slot in slots] == [named]


@given(hosts(), st.data())
@few
def test_instances_on_cpus_that_are_named_share_them(facts, data):
    named = tuple(sorted(data.draw(st.sets(st.sampled_from(facts.limits.affinity), min_size=1))))
    count = data.draw(st.integers(1, len(usable(facts, Request(cpus=named)))))
    request = Request(instances=count, cpus=named, mode=data.draw(modes))
    check_slots(facts, request, place(facts, request))


@given(hosts(), modes, st.booleans())
@few
def test_the_same_request_gives_the_same_places(facts, mode, siblings):
    request = Request(instances=1, mode=mode, siblings=siblings)
    assert place(facts, request) == place(facts, request)


@given(hosts())
@few
def test_nothing_asked_for_is_no_place(facts):
    assert place(facts, Request()) == ()


# Examples


def test_one_instance_has_one_cpu_of_each_core():
    assert cpus(XEON, instances=1) == [tuple(range(8))]


def test_two_instances_have_a_node_each():
    first, second = place(XEON, Request(instances=2))
    assert (first.cpus, first.nodes) == ((0, 1, 2, 3), (0,))
    assert (second.cpus, second.nodes) == ((4, 5, 6, 7), (1,))
    assert first.reason == "instance 0 of 2: 4 cores of node 0"
    assert second.threads == 4


def test_fewer_instances_than_there_is_room_for_are_spread_over_the_nodes():
    assert cpus(XEON, instances=2, cores_per_instance=2) == [(0, 1), (4, 5)]
    assert cpus(XEON, instances=3, cores_per_instance=2) == [(0, 1), (4, 5), (2, 3)]


def test_an_instance_that_fits_no_node_crosses_them():
    (slot,) = place(XEON, Request(cores_per_instance=6))
    assert (slot.cpus, slot.nodes, slot.reason) == ((0, 1, 2, 3, 4, 5), (0, 1), "6 cores of nodes 0-1")


def test_the_cores_of_an_instance_say_how_many_there_are():
    assert cpus(XEON, cores_per_instance=3) == [(0, 1, 2), (4, 5, 6)]


def test_siblings_stay_together():
    slots = place(XEON, Request(instances=4, siblings=True))
    assert [slot.cpus for slot in slots] == [(0, 1, 8, 9), (4, 5, 12, 13), (2, 3, 10, 11), (6, 7, 14, 15)]
    assert [slot.threads for slot in slots] == [4, 4, 4, 4]


def test_siblings_that_are_named_are_used_and_get_no_thread_of_their_own():
    (slot,) = place(XEON, Request(cpus=(0, 1, 8, 9)))
    assert (slot.cpus, slot.threads) == ((0, 1, 8, 9), 2)


def test_throughput_is_one_instance_on_each_node():
    assert cpus(XEON, mode="throughput") == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_latency_is_four_cores_for_each_instance():
    eight = facts_of(make_topology((8,), smt=2))
    assert cpus(eight, mode="latency") == [(0, 1, 2, 3), (4, 5, 6, 7)]


def test_latency_instances_are_no_more_than_the_quota_lets_compute():
    eight = make_topology((8,))
    assert cpus(facts_of(eight, quota=5.0), mode="latency") == [(0, 1, 2, 3)]
    assert cpus(facts_of(eight, quota=2.5), mode="latency") == [(0, 1)]
    assert cpus(facts_of(eight, quota=0.5), mode="latency") == [(0,)]


def test_a_number_of_latency_instances_gets_the_most_that_stays_on_a_node():
    uneven = facts_of(make_topology((3, 5)))
    assert cpus(uneven, mode="latency", instances=1) == [(3, 4, 5, 6, 7)]
    assert cpus(uneven, mode="latency", instances=2) == [(0, 1, 2), (3, 4, 5)]
    assert cpus(uneven, mode="latency", instances=3) == [(0, 1), (3, 4), (5, 6)]


def test_as_many_as_fit_stay_on_their_node_and_only_the_rest_crosses():
    uneven = facts_of(make_topology((3, 4, 5)))
    crossing = [slot for slot in place(uneven, Request(instances=3)) if len(slot.nodes) > 1]
    assert len(crossing) == 1


def test_a_node_is_asked_for():
    assert cpus(XEON, nodes=(1,)) == [(4, 5, 6, 7)]
    assert cpus(XEON, nodes=(1,), cores_per_instance=2) == [(4, 5), (6, 7)]
    assert cpus(XEON, nodes=(1,), cpus=(3, 4, 5)) == [(4, 5)]


def test_efficiency_cores_stay_out_unless_they_are_named():
    hybrid = facts_of(make_topology((6,), smt=1, small=(4, 5)))
    assert cpus(hybrid, instances=1) == [(0, 1, 2, 3)]
    assert cpus(hybrid, cpus=(3, 4, 5)) == [(3, 4, 5)]


def test_a_quota_is_divided_between_the_instances():
    quota = XEON._replace(limits=XEON.limits._replace(cpu_quota=5.0))
    slots = place(quota, Request(instances=2))
    assert [slot.threads for slot in slots] == [2, 2]
    assert "the CPU quota of 5 allows 2 threads" in slots[0].reason


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(instances=9), "but 9 instances were asked for and 8 cores may be used"),
        (Request(cores_per_instance=9), "but an instance of 9 cores were asked for and 8 cores may be used"),
        (Request(3, 3), "but 3 instances of 3 cores were asked for and 8 cores may be used"),
        (Request(5, nodes=(0,)), "but 5 instances were asked for and 4 cores may be used"),
        (Request(3, cpus=(0, 8, 1)), "but 3 instances were asked for and 2 cores may be used"),
        (Request(9, mode="latency"), "9 instances"),
        (Request(9, siblings=True), "9 instances"),
    ],
)
def test_more_than_there_is_is_refused(request_, message):
    with pytest.raises(UsageError, match=r"`instances \* cores per instance <= cores` must hold") as raised:
        place(XEON, request_)
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("outside", [(16,), (0, 16), (99,), ()])
def test_cpus_outside_the_mask_are_refused(outside):
    with pytest.raises(UsageError, match=r"within the affinity mask 0-15, but got"):
        place(XEON, Request(cpus=outside))


def test_cpus_that_are_online_but_not_in_the_mask_are_refused():
    bound = XEON._replace(limits=XEON.limits._replace(affinity=(4, 5)))
    with pytest.raises(UsageError, match=r"within the affinity mask 4-5, but got 3-4"):
        place(bound, Request(cpus=(3, 4)))


@pytest.mark.parametrize(("nodes", "got"), [((2,), "2"), ((0, 2), "0,2"), ((), "none")])
def test_nodes_without_cpus_in_the_mask_are_refused(nodes, got):
    with pytest.raises(UsageError, match=rf"\(these have: 0-1\), but got {got}"):
        place(XEON, Request(nodes=nodes))


def test_a_node_outside_the_mask_is_refused():
    bound = XEON._replace(limits=XEON.limits._replace(affinity=(4, 5)))
    with pytest.raises(UsageError, match=r"\(these have: 1\), but got 0"):
        place(bound, Request(nodes=(0,)))


def test_a_node_that_has_only_memory_is_refused():
    with pytest.raises(UsageError, match=r"\(these have: 0\), but got 1"):
        place(facts_of(make_topology((4, 0))), Request(nodes=(1,)))


def test_a_node_and_cpus_of_another_are_refused():
    with pytest.raises(UsageError, match=r"\(these have: 0\), but got 1"):
        place(XEON, Request(nodes=(1,), cpus=(0, 1)))


def test_many_cores_have_advice():
    told = advice(XEON, Request())
    assert told.startswith("8 cores: one instance on 4 cores of one node")
    assert "8 instances of one core" in told
    assert advice(XEON, Request(cpus=(0, 1))) == ""
    assert advice(XEON._replace(limits=XEON.limits._replace(cpu_quota=2.0)), Request()) == ""
