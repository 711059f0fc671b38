"""make_plan: pure, complete, within what the host allows; user before environment before rule."""

from __future__ import annotations

import json
import math

import pytest
from conftest import replace
from hypothesis import given, settings
from hypothesis import strategies as st

from hfaccel.errors import UsageError
from hfaccel.host import HostFacts, Library, Limits, LogicalCpu, MemoryFacts, Processor, Topology
from hfaccel.plan import KNOBS, Budget, Choice, Goal, Plan, cpu_budget, make_plan

NAMES = [knob.name for knob in KNOBS]
VARIABLES = [(knob.name, variable) for knob in KNOBS for variable in knob.variables]
# A value of each knob that a user may ask for on every generated host (it has CPU 0 or not: off).
ASKED = {
    "threads": 3,
    "affinity": "off",
    "allocator": "glibc",
    "huge_pages": "off",
    "omp_wait_policy": "active",
}


def topology(sockets, cores, threads, split):
    """Siblings are numbered next to each other, or (split) after all the cores of the host."""
    cpus = []
    for core in range(sockets * cores):
        for thread in range(threads):
            cpu = core + thread * sockets * cores if split else core * threads + thread
            cpus.append(LogicalCpu(cpu, core % cores, core // cores, core // cores))
    return Topology(tuple(sorted(cpus, key=lambda entry: entry.cpu)))


def facts_of(topology, mask, quota=None, **others):
    return HostFacts(
        processor=Processor("", "", ()),
        topology=topology,
        limits=Limits(mask, quota, None),
        memory=others.get("memory", MemoryFacts(1 << 30, "madvise", "madvise", False)),
        allocators=others.get("allocators", ()),
        libc=others.get("libc", "glibc"),
        mapped=others.get("mapped", ()),
        problems=(),
    )


@st.composite
def hosts(draw):
    size = st.integers(1, 4)
    shape = topology(draw(st.integers(1, 2)), draw(size), draw(st.integers(1, 2)), draw(st.booleans()))
    online = [entry.cpu for entry in shape.cpus]
    kinds = draw(st.lists(st.sampled_from(["mimalloc", "jemalloc", "tcmalloc"]), unique=True))
    return facts_of(
        shape,
        tuple(sorted(draw(st.sets(st.sampled_from(online), min_size=1)))),
        draw(st.none() | st.floats(0.01, 20)),
        memory=MemoryFacts(
            0, draw(st.sampled_from(["always", "madvise", "never", "absent"])), "", draw(st.booleans())
        ),
        allocators=tuple(Library(kind, f"/lib/lib{kind}.so") for kind in kinds),
        libc=draw(st.sampled_from(["glibc", "musl", "unknown"])),
        mapped=draw(st.sampled_from([(), ("/lib/libc.so.6",), ("/lib/libjemalloc.so.2",)])),
    )


scopes = st.sampled_from(["launch", "process"])


def cores_touched(facts, cpus):
    """(package, core) of each CPU, one by one: two equal entries are siblings."""
    known = {entry.cpu: (entry.package, entry.core) for entry in facts.topology.cpus}
    return [known[cpu] for cpu in cpus]


# Whatever the host


@given(hosts(), scopes)
def test_a_plan_has_every_knob_once_with_a_reason(facts, scope):
    plan = make_plan(facts, Goal(scope))
    assert [choice.knob for choice in plan.choices] == NAMES
    assert all(choice.reason and "\n" not in choice.reason for choice in plan.choices)
    assert {choice.source for choice in plan.choices} == {"rule"}


@given(hosts(), scopes)
def test_the_same_facts_and_goal_give_the_same_plan(facts, scope):
    assert make_plan(facts, Goal(scope)) == make_plan(replace(facts), Goal(scope))


@given(hosts(), scopes)
def test_a_plan_can_be_written_as_json(facts, scope):
    plan = make_plan(facts, Goal(scope))
    written = json.loads(json.dumps(plan.to_dict(), default=vars))
    assert [row["knob"] for row in written] == NAMES
    assert all(set(row) == {"knob", "value", "reason", "source"} for row in written)


@given(hosts())
def test_the_affinity_is_within_the_mask_and_has_one_cpu_of_each_core(facts):
    mask, cpus = facts.limits.affinity, make_plan(facts, Goal()).choices[NAMES.index("affinity")].value
    if cpus is None:
        return
    assert set(cpus) <= set(mask)
    touched = cores_touched(facts, cpus)
    assert len(touched) == len(set(touched))
    assert set(touched) == set(cores_touched(facts, mask))
    assert len(cpus) < len(mask)  # otherwise there was nothing to choose


@given(hosts())
def test_threads_are_all_that_cores_and_quota_allow_and_no_more(facts):
    cores = len(set(cores_touched(facts, facts.limits.affinity)))
    quota = facts.limits.cpu_quota
    allowed = cores if quota is None else min(cores, max(1, math.floor(quota)))
    assert make_plan(facts, Goal())["threads"].value == allowed


@given(hosts())
def test_under_a_quota_nothing_is_bound_and_nothing_spins(facts):
    plan = make_plan(facts, Goal())
    quota = facts.limits.cpu_quota
    if quota is not None and quota < len(cpu_budget(facts).cores):
        assert plan["affinity"].value is None
        assert plan["omp_wait_policy"].value == "passive"
        assert "quota" in plan["threads"].reason
    else:
        assert plan["omp_wait_policy"].value is None


@given(hosts(), st.data())
def test_threads_are_not_more_than_the_cores_that_the_user_binds_to(facts, data):
    mask = facts.limits.affinity
    wanted = sorted(data.draw(st.sets(st.sampled_from(mask), min_size=1)))
    plan = make_plan(facts, Goal(overrides={"affinity": ",".join(map(str, wanted))}))
    assert plan["affinity"].value == tuple(wanted)
    assert 1 <= plan["threads"].value <= len(set(cores_touched(facts, wanted)))


@given(hosts(), scopes)
def test_a_library_is_chosen_for_a_process_that_is_yet_to_start_only(facts, scope):
    value = make_plan(facts, Goal(scope))["allocator"].value
    if scope == "launch" and facts.allocators:
        assert value == facts.allocators[0]
    else:
        assert value in (None, "glibc")
        assert facts.libc == "glibc" or value is None


def test_an_empty_mask_binds_nothing_and_computes_with_one_thread():
    plan = make_plan(facts_of(topology(1, 2, 2, True), ()), Goal())
    assert plan["threads"].value == 1
    assert plan["affinity"].value is None


# Precedence


@pytest.mark.parametrize("knob", NAMES)
@given(facts=hosts(), scope=scopes)
@settings(max_examples=20)
def test_the_user_comes_before_the_environment(knob, facts, scope):
    environment = {variable: "1" for _, variable in VARIABLES}
    choice = make_plan(facts, Goal(scope, {knob: ASKED[knob]}, environment))[knob]
    assert choice.source == "user"
    assert choice.value == (None if knob == "affinity" else ASKED[knob])


@pytest.mark.parametrize(("knob", "variable"), VARIABLES)
@given(facts=hosts(), scope=scopes)
@settings(max_examples=20)
def test_the_environment_comes_before_the_rule(knob, variable, facts, scope):
    plan = make_plan(facts, Goal(scope, {}, {variable: "1,2"}))
    assert plan[knob] == Choice(knob, None, f"{variable}=1,2 is set and kept", "environment")
    assert [choice.knob for choice in plan.choices if choice.source != "rule"] == [knob]


@given(hosts(), scopes, st.sampled_from([None, "auto"]), st.sampled_from([{}, {"OMP_NUM_THREADS": "2"}]))
def test_auto_is_the_same_as_not_asking(facts, scope, auto, environment):
    asked = Goal(scope, dict.fromkeys(NAMES, auto), environment)
    assert make_plan(facts, asked) == make_plan(facts, Goal(scope, {}, environment))


@given(hosts())
def test_an_empty_variable_is_as_good_as_none(facts):
    empty = {variable: "" for _, variable in VARIABLES}
    assert make_plan(facts, Goal("launch", {}, empty)) == make_plan(facts, Goal("launch"))


def test_the_first_variable_of_a_knob_is_the_one_named():
    environment = {"KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}
    plan = make_plan(facts_of(topology(1, 1, 1, True), (0,)), Goal("launch", {}, environment))
    assert plan["omp_wait_policy"].reason == "GOMP_SPINCOUNT=0 is set and kept"


def test_a_goal_is_the_launch_of_a_process_unless_said_otherwise():
    assert Goal() == Goal("launch", {}, {})


def test_settings_that_no_knob_has_are_refused():
    facts = facts_of(topology(1, 1, 1, True), (0,))
    with pytest.raises(UsageError) as raised:
        make_plan(facts, Goal(overrides={"thread": 1, "cores": 1, "threads": 1}))
    assert str(raised.value) == f"a setting must be one of {', '.join(NAMES)}, but got cores, thread"


# Plan and budget


def test_a_plan_is_read_by_the_name_of_a_knob():
    plan = Plan((Choice("threads", 2, "why"), Choice("affinity", None, "why not", "user")))
    assert plan["affinity"].source == "user"
    assert plan["threads"].source == "rule"
    with pytest.raises(KeyError, match=r"threads, affinity, but got 'cores'"):
        plan["cores"]


@pytest.mark.parametrize(
    ("mask", "quota", "expected"),
    [
        ((0, 1, 2, 3), None, (2, (0, 1), False)),
        ((2, 3), None, (2, (2, 3), False)),
        ((0, 2), None, (1, (0,), False)),
        ((0, 1, 2, 3), 1.9, (1, (0, 1), True)),
        ((0, 1, 2, 3), 0.5, (1, (0, 1), True)),
        ((0, 1, 2, 3), 2.0, (2, (0, 1), False)),
        ((0, 1, 2, 3), 64.0, (2, (0, 1), False)),
    ],
)
def test_the_budget_counts_cores_and_not_siblings(mask, quota, expected):
    budget = cpu_budget(facts_of(topology(1, 2, 2, split=True), mask, quota))
    assert budget == Budget(*expected, budget.reason)
    assert ("quota" in budget.reason) is expected[2]
