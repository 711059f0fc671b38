"""make_plan: pure, complete, within what the host allows; user, environment, profile, rule in this order."""

from __future__ import annotations

import json
import math

import pytest
from conftest import replace
from hypothesis import given, settings
from hypothesis import strategies as st
from topologies import cores_touched, facts_of, few, hosts, make_topology, scopes, usable

from hfaccel.errors import UsageError
from hfaccel.plan import KNOBS, Budget, Choice, Goal, Plan, Request, cpu_budget, make_plan, place

NAMES = [knob.name for knob in KNOBS]
VARIABLES = [(knob.name, variable) for knob in KNOBS for variable in knob.variables]
# A value of each knob that a user may ask for on every generated host, and what it means.
ASKED = {
    "threads": ("3", 3),
    "interop_threads": (2, 2),
    "affinity": ("off", None),
    "memory_policy": ("off", None),
    "omp_runtime": ("default", None),
    "omp_wait_policy": ("active", "active"),
    "omp_placement": ("close", "close"),
    "allocator": ("glibc", "glibc"),
    "retained_memory": ("512M", 512 << 20),
    "huge_pages": ("off", "off"),
    "primitive_cache": ("7", 7),
    "tokenizer_threads": (2, 2),
    "hub_cache": ("/models", "/models"),
    "tensorflow_threads": ("2", 2),
    "cuda_allocator": ("off", None),
}
LAUNCH_ONLY = [knob.name for knob in KNOBS if knob.scopes == ("launch",)]
PROCESS_ONLY = [knob.name for knob in KNOBS if knob.scopes == ("process",)]
FOUR = facts_of(make_topology((4,), smt=2))  # CPUs 0-7, siblings 4 apart


def limited(facts, **changes):
    return replace(facts, limits=replace(facts.limits, **changes))


# Whatever the host


@given(hosts(), scopes)
@few
def test_a_plan_has_every_knob_once_with_a_reason(facts, scope):
    plan = make_plan(facts, Goal(scope))
    assert [choice.knob for choice in plan.choices] == NAMES
    assert all(choice.reason and "\n" not in choice.reason for choice in plan.choices)
    assert {choice.source for choice in plan.choices} == {"rule"}


@given(hosts(), scopes)
@few
def test_the_same_facts_and_goal_give_the_same_plan(facts, scope):
    plan = make_plan(facts, Goal(scope))
    assert plan == make_plan(replace(facts), Goal(scope))
    assert hash(plan) == hash(make_plan(facts, Goal(scope)))


@given(hosts(), scopes)
@few
def test_a_plan_can_be_written_as_json(facts, scope):
    written = json.loads(json.dumps(make_plan(facts, Goal(scope)).to_dict()))
    assert [row["knob"] for row in written] == NAMES
    assert all(set(row) == {"knob", "value", "reason", "source"} for row in written)


@given(hosts())
def test_the_affinity_is_within_the_mask_and_has_one_cpu_of_each_core(facts):
    mask, cpus = facts.limits.affinity, make_plan(facts, Goal())["affinity"].value
    if cpus is None:
        return
    assert set(cpus) <= set(mask)
    assert sorted(cores_touched(facts, cpus)) == sorted(usable(facts))
    assert len(cpus) < len(mask)  # otherwise there was nothing to choose


@given(hosts())
def test_threads_are_all_that_cores_and_quota_allow_and_no_more(facts):
    cores = len(usable(facts))
    quota = facts.limits.cpu_quota
    allowed = cores if quota is None else min(cores, max(1, math.floor(quota)))
    assert make_plan(facts, Goal())["threads"].value == allowed


@given(hosts())
def test_under_a_quota_nothing_is_bound_and_nothing_spins(facts):
    plan = make_plan(facts, Goal())
    quota = facts.limits.cpu_quota
    if quota is not None and max(1, math.floor(quota)) < len(usable(facts)):
        assert plan["affinity"].value is None
        assert plan["omp_wait_policy"].value == "passive"
        assert plan["omp_runtime"].value is None
        assert "quota" in plan["threads"].reason
    else:
        assert plan["omp_wait_policy"].value is None
        assert "quota" not in plan["threads"].reason


@given(hosts(), st.data())
def test_threads_are_not_more_than_the_cores_that_the_user_binds_to(facts, data):
    mask = facts.limits.affinity
    wanted = sorted(data.draw(st.sets(st.sampled_from(mask), min_size=1)))
    plan = make_plan(facts, Goal(overrides={"affinity": ",".join(map(str, wanted))}))
    assert plan["affinity"].value == tuple(wanted)
    assert 1 <= plan["threads"].value <= len(set(cores_touched(facts, wanted)))


@given(hosts(), scopes)
@few
def test_a_library_is_chosen_for_a_process_that_is_yet_to_start_only(facts, scope):
    plan = make_plan(facts, Goal(scope))
    value = plan["allocator"].value
    if scope == "launch" and facts.allocators:
        assert value == facts.allocators[0]
    else:
        assert value in (None, "glibc")
        assert facts.libc == "glibc" or value is None
    if scope == "process":
        assert plan["omp_runtime"].value is None


@given(hosts())
@few
def test_memory_comes_from_a_node_that_has_some(facts):
    policy = make_plan(facts, Goal())["memory_policy"].value
    if policy is not None:
        assert (policy.mode == "preferred") == (len(policy.nodes) == 1)
        memory = {entry.number: entry.memory for entry in facts.topology.nodes}
        assert policy.nodes and all(memory[node] > 0 for node in policy.nodes)


@given(hosts())
@few
def test_what_takes_effect_in_one_scope_only_is_nothing_in_the_other(facts):
    launched, running = make_plan(facts, Goal("launch")), make_plan(facts, Goal("process"))
    assert [name for name in LAUNCH_ONLY if running[name].value is not None] == []
    assert [name for name in PROCESS_ONLY if launched[name].value is not None] == []
    assert all("hfaccel-run sets it" in running[name].reason for name in LAUNCH_ONLY)
    assert all("configure() sets it" in launched[name].reason for name in PROCESS_ONLY)


def test_an_empty_mask_binds_nothing_and_computes_with_one_thread():
    plan = make_plan(limited(FOUR, affinity=()), Goal())
    assert plan["threads"].value == 1
    assert plan["affinity"].value is None


# Precedence


def test_every_knob_has_a_value_to_test_with():
    assert list(ASKED) == NAMES


@pytest.mark.parametrize("knob", NAMES)
@given(facts=hosts(), scope=scopes)
@settings(max_examples=10)
def test_the_user_comes_before_the_environment_and_the_profile(knob, facts, scope):
    environment = {variable: "1" for _, variable in VARIABLES}
    asked, value = ASKED[knob]
    profile = {knob: "nonsense"}
    choice = make_plan(facts, Goal(scope, {knob: asked}, environment, profile))[knob]
    assert choice == Choice(knob, value, "asked for", "user")


@pytest.mark.parametrize(("knob", "variable"), VARIABLES)
@given(facts=hosts(), scope=scopes)
@settings(max_examples=5)
def test_the_environment_comes_before_the_profile_and_the_rule(knob, variable, facts, scope):
    profile = {knob: ASKED[knob][0]}
    plan = make_plan(facts, Goal(scope, {}, {variable: "1,2"}, profile))
    assert plan[knob] == Choice(knob, None, f"{variable}=1,2 is set and kept", "environment")
    kept = [choice.knob for choice in plan.choices if choice.source != "rule"]
    assert kept == [other.name for other in KNOBS if variable in other.variables]


@pytest.mark.parametrize("knob", NAMES)
@given(facts=hosts(), scope=scopes)
@settings(max_examples=5)
def test_the_profile_comes_before_the_rule(knob, facts, scope):
    asked, value = ASKED[knob]
    plan = make_plan(facts, Goal(scope, profile={knob: asked}))
    tuned = [choice for choice in plan.choices if choice.source != "rule"]
    takes_effect = scope in next(each.scopes for each in KNOBS if each.name == knob)
    assert tuned == ([Choice(knob, value, "tuned", "profile")] if takes_effect else [])
    assert takes_effect or plan[knob].value is None


@pytest.mark.parametrize(("knob", "scope"), [("omp_runtime", "process"), ("interop_threads", "launch")])
def test_a_profile_is_checked_where_it_takes_no_effect(knob, scope):
    with pytest.raises(UsageError):
        make_plan(FOUR, Goal(scope, profile={knob: "nonsense"}))


@given(hosts(), scopes, st.sampled_from([None, "auto"]), st.sampled_from([{}, {"OMP_NUM_THREADS": "2"}]))
@few
def test_auto_is_the_same_as_not_asking(facts, scope, auto, environment):
    asked = Goal(scope, dict.fromkeys(NAMES, auto), environment)
    assert make_plan(facts, asked) == make_plan(facts, Goal(scope, {}, environment))


@pytest.mark.parametrize("auto", [None, "auto"])
def test_auto_leaves_it_to_the_profile(auto):
    plan = make_plan(FOUR, Goal("launch", {"threads": auto}, {}, {"threads": 2}))
    assert (plan["threads"].value, plan["threads"].source) == (2, "profile")


@given(hosts())
@few
def test_an_empty_variable_is_as_good_as_none(facts):
    empty = {variable: "" for _, variable in VARIABLES}
    assert make_plan(facts, Goal("launch", {}, empty)) == make_plan(facts, Goal("launch"))


def test_the_first_variable_of_a_knob_is_the_one_named():
    environment = {"KMP_BLOCKTIME": "0", "GOMP_SPINCOUNT": "0"}
    plan = make_plan(FOUR, Goal("launch", {}, environment))
    assert plan["omp_wait_policy"].reason == "GOMP_SPINCOUNT=0 is set and kept"


def test_a_goal_is_the_launch_of_a_process_unless_said_otherwise():
    assert Goal() == Goal("launch", {}, {}, {}, None)


@pytest.mark.parametrize(
    ("goal", "what"),
    [
        (Goal(overrides={"thread": 1, "cores": 1, "threads": 1}), "a setting"),
        (Goal(profile={"thread": 1, "cores": 1, "threads": 1}), "a setting of a profile"),
    ],
)
def test_settings_that_no_knob_has_are_refused(goal, what):
    with pytest.raises(UsageError) as raised:
        make_plan(FOUR, goal)
    assert str(raised.value) == f"{what} must be one of {', '.join(NAMES)}, but got cores, thread"


def test_nonsense_in_a_profile_is_refused():
    with pytest.raises(UsageError, match="but got 'many'"):
        make_plan(FOUR, Goal(profile={"threads": "many"}))


# In the place of one of several instances


def slot_of(facts, **request):
    return place(facts, Request(**request))[-1]


@given(hosts(), scopes, st.booleans())
@few
def test_a_place_that_was_asked_for_comes_before_the_environment(facts, scope, siblings):
    slot = slot_of(facts, instances=1, siblings=siblings)
    environment = {"OMP_NUM_THREADS": "9", "OMP_PLACES": "cores"}
    plan = make_plan(facts, Goal(scope, {}, environment, {"threads": 7, "affinity": "off"}, slot))
    assert plan["threads"] == Choice("threads", slot.threads, slot.reason, "user")
    assert plan["affinity"] == Choice("affinity", slot.cpus, slot.reason, "user")


def test_a_setting_comes_before_the_place():
    plan = make_plan(FOUR, Goal("launch", {"threads": 1}, {}, {}, slot_of(FOUR, instances=2)))
    assert (plan["threads"].value, plan["threads"].reason) == (1, "asked for")
    assert plan["affinity"].value == (2, 3)


def test_the_rules_see_only_the_cpus_of_the_place():
    two_nodes = facts_of(make_topology((4, 4)))
    plan = make_plan(two_nodes, Goal(slot=slot_of(two_nodes, instances=2)))
    assert str(plan["memory_policy"].value) == "preferred:1"
    assert plan["tokenizer_threads"].value == 4
    assert str(make_plan(two_nodes, Goal())["memory_policy"].value) == "interleave:0-1"


def test_threads_are_not_more_than_the_cores_that_the_user_binds_to_within_a_place():
    plan = make_plan(FOUR, Goal("launch", {"affinity": "2"}, slot=slot_of(FOUR, instances=2)))
    assert (plan["affinity"].value, plan["threads"].value) == ((2,), 1)


def test_instances_that_share_a_quota_do_not_spin():
    """Two instances of four cores and a quota of four CPUs: two threads each, and none to waste."""
    eight = facts_of(make_topology((8,)), quota=4.0)
    plan = make_plan(eight, Goal(slot=slot_of(eight, instances=2)))
    assert plan["threads"].value == 2
    assert plan["omp_wait_policy"].value == "passive"


# Plan and budget


def test_a_plan_is_read_by_the_name_of_a_knob():
    plan = Plan((Choice("threads", 2, "why"), Choice("affinity", None, "why not", "user")))
    assert plan["affinity"].source == "user"
    assert plan["threads"].source == "rule"
    assert plan != Plan((Choice("threads", 3, "why"),))
    assert plan != plan.choices
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
    budget = cpu_budget(facts_of(make_topology((2,), smt=2), mask, quota))
    assert budget == Budget(*expected, budget.reason)
    assert ("quota" in budget.reason) is expected[2]


@pytest.mark.parametrize(
    ("mask", "cores"), [(range(6), (0, 1, 2, 3)), ((3, 4, 5), (3,)), ((4, 5), (4, 5)), ((0, 5), (0,))]
)
def test_the_budget_leaves_out_small_cores_unless_there_are_no_others(mask, cores):
    hybrid = facts_of(make_topology((6,), small=(4, 5)), tuple(mask))
    budget = cpu_budget(hybrid)
    assert (budget.threads, budget.cores) == (len(cores), cores)
    assert ("efficiency cores left out" in budget.reason) == (len(cores) < len(tuple(mask)))
