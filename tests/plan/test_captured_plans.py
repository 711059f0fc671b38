"""Every captured host: a plan for both scopes and places for instances, and what must hold for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from topologies import check_slots, cores_touched, usable

from hfaccel.apply.environ import launch_environment
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.plan import KNOBS, Goal, Request, make_plan, place, rank_slot

PATHS = sorted((Path(__file__).parent.parent / "hosts").glob("*.txt"))
REQUESTS = [
    Request(instances=2),
    Request(instances=2, siblings=True),
    Request(instances=3, mode="latency"),
    Request(cores_per_instance=2),
    Request(mode="latency"),
    Request(mode="throughput"),
    Request(mode="throughput", siblings=True),
    Request(siblings=True),
]


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def facts(request):
    return read_host(request.param)


def test_there_are_captured_hosts():
    assert len(PATHS) >= 10


@pytest.mark.parametrize("scope", ["launch", "process"])
def test_a_plan_is_made_of_rules_and_fits_the_host(facts, scope):
    plan = make_plan(facts, Goal(scope))
    assert [choice.knob for choice in plan.choices] == [knob.name for knob in KNOBS]
    assert all(choice.reason and choice.source == "rule" for choice in plan.choices)
    assert json.loads(json.dumps(plan.to_dict()))
    assert 1 <= plan["threads"].value <= min(len(usable(facts)), facts.limits.cpu_quota or 1 << 20) or (
        plan["threads"].value == 1
    )
    cpus = plan["affinity"].value
    if cpus is not None:
        assert set(cpus) < set(facts.limits.affinity)
        assert sorted(cores_touched(facts, cpus)) == sorted(usable(facts))
    policy = plan["memory_policy"].value
    if policy is not None:
        assert set(policy.nodes) <= set(facts.limits.memory_nodes)


def test_the_environment_of_a_launch_is_one_that_a_process_can_have(facts):
    environment = {"PATH": "/bin", "LANG": "C"}
    result = launch_environment(make_plan(facts, Goal("launch")), environment)
    assert result.items() >= environment.items()
    assert all(isinstance(name, str) and isinstance(value, str) for name, value in result.items())
    assert not any("\0" in text or "=" in text for text in result)


@pytest.mark.parametrize("request_", REQUESTS, ids=str)
def test_instances_have_right_places_or_are_refused_where_there_are_too_few_cores(facts, request_):
    needed = (request_.instances or 1) * (request_.cores_per_instance or 1)
    if needed > len(usable(facts)):
        with pytest.raises(UsageError, match="cores may be used"):
            place(facts, request_)
        return
    slots = place(facts, request_)
    check_slots(facts, request_, slots)
    for slot in slots:
        plan = make_plan(facts, Goal("launch", {}, {"OMP_NUM_THREADS": "99"}, slot=slot))
        assert (plan["threads"].value, plan["affinity"].value) == (slot.threads, slot.cpus)


def test_two_ranks_have_half_of_the_cores_each(facts):
    environment = {"LOCAL_WORLD_SIZE": "2"}
    slots = [rank_slot(facts, environment | {"LOCAL_RANK": rank}) for rank in "01"]
    if len(usable(facts)) < 2 or set(facts.limits.affinity) < set(facts.limits.parent_affinity):
        assert slots == [None, None]
        return
    first, second = slots
    assert not set(cores_touched(facts, first.cpus)) & set(cores_touched(facts, second.cpus))
    assert len(first.cpus) == len(second.cpus) == len(usable(facts)) // 2
