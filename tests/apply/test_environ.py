"""The plan as environment variables: what is set, what is saved, what is left to the user."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import pytest
from conftest import replace

from hfaccel.apply.environ import (
    GLIBC_TUNABLES,
    JEMALLOC,
    MIMALLOC,
    SAVED,
    SITE,
    allocator_variables,
    launch_environment,
    openmp_variables,
)
from hfaccel.host import Library, read_host
from hfaccel.plan import Choice, Goal, Plan, make_plan

LIBRARIES = {kind: Library(kind, f"/lib/lib{kind}.so") for kind in ("mimalloc", "jemalloc", "tcmalloc")}


def plan(**values):
    """A plan that leaves everything as it is, except what is given."""
    knobs = {"threads": None, "allocator": None, "omp_wait_policy": None, **values}
    return Plan(tuple(Choice(knob, value, "") for knob, value in knobs.items()))


@pytest.fixture
def undo(monkeypatch):
    """What the program sees: runs the sitecustomize of SITE on an environment."""

    def run(variables):
        seen = dict(variables)
        with monkeypatch.context() as patch:
            patch.setattr(os, "environ", seen)
            patch.setattr(sys, "path", [SITE])  # no sitecustomize of a user is found
            patch.setitem(sys.modules, "sitecustomize", None)
            runpy.run_path(f"{SITE}/sitecustomize.py")
            assert sys.path == []
        return seen

    return run


def test_the_folder_put_first_on_the_path_has_the_sitecustomize():
    assert (Path(SITE) / "sitecustomize.py").is_file()


def test_nothing_chosen_changes_only_the_path():
    result = launch_environment(plan(), {"A": "1"})
    assert {name: value for name, value in result.items() if not name.startswith(SAVED)} == {
        "A": "1",
        "PYTHONPATH": SITE,
    }


def test_the_given_environment_is_not_changed():
    given = {"PYTHONPATH": "/user"}
    launch_environment(plan(threads=2, allocator="glibc"), given)
    assert given == {"PYTHONPATH": "/user"}


def test_the_users_path_comes_after():
    assert launch_environment(plan(), {"PYTHONPATH": "/user:"})["PYTHONPATH"] == f"{SITE}:/user:"


@pytest.mark.parametrize(
    ("kind", "settings"), [("mimalloc", MIMALLOC), ("jemalloc", JEMALLOC), ("tcmalloc", {}), ("custom", {})]
)
def test_a_library_is_preloaded_with_its_settings(kind, settings):
    library = LIBRARIES.get(kind, Library(kind, "/lib/any.so"))
    assert allocator_variables(plan(allocator=library), {}) == {"LD_PRELOAD": library.path, **settings}


def test_a_library_stands_in_front_of_the_users():
    variables = allocator_variables(plan(allocator=LIBRARIES["tcmalloc"]), {"LD_PRELOAD": "a.so:b.so"})
    assert variables == {"LD_PRELOAD": "/lib/libtcmalloc.so:a.so:b.so"}


@pytest.mark.parametrize(("kind", "settings"), [("mimalloc", MIMALLOC), ("jemalloc", JEMALLOC)])
@pytest.mark.parametrize("value", ["of-the-user", ""])
def test_settings_of_the_user_are_kept(kind, settings, value):
    (name,) = settings
    variables = allocator_variables(plan(allocator=LIBRARIES[kind]), {name: value})
    assert name not in variables
    assert launch_environment(plan(allocator=LIBRARIES[kind]), {name: value})[name] == value


def test_glibc_is_tuned_without_a_library():
    assert allocator_variables(plan(allocator="glibc"), {}) == {"GLIBC_TUNABLES": GLIBC_TUNABLES}


def test_glibcs_thresholds_are_set_together():
    """The mmap threshold alone would freeze the trim threshold at 128 KiB."""
    settings = dict(setting.rsplit("=", 1) for setting in GLIBC_TUNABLES.split(":"))
    for name in ("mmap_threshold", "trim_threshold"):
        assert int(settings[f"glibc.malloc.{name}"]) >= 1 << 30


@pytest.mark.parametrize("allocator", [*LIBRARIES.values(), "glibc", None])
@pytest.mark.parametrize(
    "user",
    [{}, {"PYTHONPATH": "/user", "LD_PRELOAD": "x.so"}, {"GLIBC_TUNABLES": "a=1"}, {"MALLOC_CONF": "b:1"}],
    ids=str,
)
def test_what_is_private_is_undone_completely(undo, allocator, user):
    user = {"PATH": "/bin", **user}
    assert undo(launch_environment(plan(allocator=allocator), user)) == user


@pytest.mark.parametrize("name", ["PYTHONPATH", "LD_PRELOAD", "GLIBC_TUNABLES"])
@pytest.mark.parametrize("allocator", [LIBRARIES["tcmalloc"], "glibc"])
def test_an_empty_variable_stays_empty_and_is_not_removed(undo, name, allocator):
    user = {"PATH": "/bin", name: ""}
    assert undo(launch_environment(plan(allocator=allocator), user)) == user


def test_openmp_variables_follow_the_plan():
    assert openmp_variables(plan()) == {}
    assert openmp_variables(plan(threads=3)) == {"OMP_NUM_THREADS": "3"}
    assert openmp_variables(plan(omp_wait_policy="passive")) == {"OMP_WAIT_POLICY": "passive"}


def test_openmp_variables_are_not_private():
    result = launch_environment(plan(threads=3, omp_wait_policy="active"), {})
    assert result["OMP_NUM_THREADS"] == "3" and result["OMP_WAIT_POLICY"] == "active"
    assert not any("OMP" in name for name in result if name.startswith(SAVED))


def test_a_real_plan_keeps_what_the_user_has_set():
    facts = replace(read_host(), allocators=(LIBRARIES["mimalloc"],), libc="glibc")
    user = {"OMP_NUM_THREADS": "7", "LD_PRELOAD": "x.so", "OMP_WAIT_POLICY": "active"}
    result = launch_environment(make_plan(facts, Goal("launch", {}, user)), user)
    assert {name: result[name] for name in user} == user
