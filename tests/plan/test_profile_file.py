"""Profiles as files: what is written is read back, and which hosts are of the same kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.plan import Request
from hfaccel.plan.make import within
from hfaccel.plan.profile import Profile, check_host, kind_of, parse_profile, problem_here, write_profile

HOSTS = {path.stem: path for path in (Path(__file__).parent.parent / "hosts").glob("*.txt")}
XEON = read_host(HOSTS["xeon-2-sockets"])


def tuned_on(facts):
    return Profile(knobs={"threads": 2}, host=kind_of(facts)._asdict(), path="a.toml")


@pytest.mark.parametrize("name", HOSTS)
def test_a_profile_fits_the_host_on_which_it_was_made(name):
    facts = read_host(HOSTS[name])
    read = parse_profile(write_profile(tuned_on(facts)), "a.toml")
    assert read == tuned_on(facts) and problem_here(read, facts) == ""


def test_most_captured_hosts_are_of_different_kinds():
    kinds = {kind_of(read_host(path)) for path in HOSTS.values()}
    assert len(kinds) > len(HOSTS) * 0.8


@pytest.mark.parametrize("other", ["zen4-vm", "graviton3", "pod-v2-quota"])
def test_another_host_is_refused_with_the_first_difference(other):
    facts = read_host(HOSTS[other])
    with pytest.raises(UsageError, match=r"must be for this kind of host.*run hfaccel tune here"):
        check_host(tuned_on(XEON), facts)


def test_fewer_cores_are_another_kind_of_host():
    half = within(XEON, XEON.limits.affinity[:4])
    assert problem_here(tuned_on(XEON), half).startswith(f"its cores is {kind_of(XEON).cores}, here 4")


def test_a_core_less_or_hyper_threads_more_are_told_apart():
    without_siblings = within(XEON, tuple(range(8)))
    assert kind_of(without_siblings) == kind_of(XEON)  # hyper-threads are not used
    assert kind_of(within(XEON, tuple(range(7)))) != kind_of(XEON)


def test_only_lines_that_are_there_are_compared():
    one_line = Profile(host={"cores": kind_of(XEON).cores})
    assert problem_here(one_line, XEON) == "" and problem_here(Profile(), XEON) == ""


@pytest.mark.parametrize(
    ("instances", "request_"),
    [
        ({}, Request()),
        ({"count": 2}, Request(instances=2)),
        ({"count": 2, "cores": 4}, Request(instances=2, cores_per_instance=4)),
    ],
)
def test_instances_are_a_request_for_places(instances, request_):
    assert Profile(instances=instances).request() == request_


TEXTS = st.text(st.characters(codec="utf-8")) | st.text(st.characters(categories=["Cs"]))
VALUES = st.booleans() | st.integers(-(1 << 62), 1 << 62) | st.floats(allow_nan=False) | TEXTS


@given(st.dictionaries(st.sampled_from(["subject", "gain", "date"]), VALUES | st.lists(VALUES)), TEXTS)
def test_evidence_is_read_back(evidence, comment):
    def shown(value):
        if isinstance(value, list):
            return [shown(each) for each in value]
        return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value

    read = parse_profile(write_profile(Profile(evidence=evidence), (comment,)))
    assert read.evidence == {name: shown(value) for name, value in evidence.items()}
