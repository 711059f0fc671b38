"""The plan as environment variables: what is set, what is saved, what is left to the user."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import replace

from hfaccel.apply.environ import ONE_MALLOC, SAVED, SITE, launch_environment, preloads
from hfaccel.host import Library, read_host
from hfaccel.plan import KNOBS, Choice, Goal, Plan, make_plan
from hfaccel.plan.memory import JEMALLOC, export_allocator

LIBRARIES = {kind: Library(kind, f"/lib/lib{kind}.so") for kind in ("mimalloc", "jemalloc", "tcmalloc")}
INTEL = Library("intel", "/lib/libiomp5.so")
NAMES = [knob.name for knob in KNOBS]
MIMALLOC = {"MIMALLOC_PURGE_DELAY": "60000"}
GLIBC_TUNABLES = export_allocator("glibc", {})["GLIBC_TUNABLES"]
PRIVATE = {"LD_PRELOAD", "PYTHONPATH", "MIMALLOC_PURGE_DELAY", "MALLOC_CONF", "GLIBC_TUNABLES"}


def plan(source="rule", **values):
    """A plan that leaves everything as it is, except what is given."""
    assert set(values) <= set(NAMES)
    return Plan(tuple(Choice(knob, values.get(knob), "", source) for knob in NAMES))


def set_by(given_plan, environment):
    """The variables that a launch adds or changes, without hfaccel's own."""
    result = launch_environment(given_plan, environment)
    return {
        name: value
        for name, value in result.items()
        if not name.startswith(SAVED) and name != "PYTHONPATH" and environment.get(name) != value
    }


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


# What each knob exports

EXPORTS = [
    ({"threads": 3}, {"OMP_NUM_THREADS": "3"}),
    ({"interop_threads": 2}, {}),
    ({"affinity": (0, 1)}, {}),  # sched_setaffinity does that
    ({"omp_wait_policy": "passive"}, {"OMP_WAIT_POLICY": "passive"}),
    ({"omp_wait_policy": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ({"omp_placement": "close"}, {"OMP_PROC_BIND": "close", "OMP_PLACES": "cores"}),
    ({"omp_placement": "spread"}, {"OMP_PROC_BIND": "spread", "OMP_PLACES": "cores"}),
    ({"omp_runtime": INTEL}, {"LD_PRELOAD": INTEL.path}),
    (
        {"omp_runtime": INTEL, "omp_wait_policy": "passive"},
        {"LD_PRELOAD": INTEL.path, "KMP_BLOCKTIME": "0"},
    ),
    (
        {"omp_runtime": INTEL, "omp_wait_policy": "active"},
        {"LD_PRELOAD": INTEL.path, "KMP_BLOCKTIME": "infinite"},
    ),
    (
        {"omp_runtime": INTEL, "omp_placement": "close"},
        {"LD_PRELOAD": INTEL.path, "KMP_AFFINITY": "granularity=fine,compact,1,0"},
    ),
    (
        {"omp_runtime": INTEL, "omp_placement": "spread"},
        {"LD_PRELOAD": INTEL.path, "KMP_AFFINITY": "granularity=fine,scatter,1,0"},
    ),
    ({"allocator": "glibc"}, {"GLIBC_TUNABLES": GLIBC_TUNABLES}),
    (
        {"allocator": LIBRARIES["mimalloc"]},
        {"LD_PRELOAD": "/lib/libmimalloc.so", **MIMALLOC, **ONE_MALLOC},
    ),
    (
        {"allocator": LIBRARIES["jemalloc"]},
        {"LD_PRELOAD": "/lib/libjemalloc.so", **JEMALLOC, **ONE_MALLOC},
    ),
    ({"allocator": LIBRARIES["tcmalloc"]}, {"LD_PRELOAD": "/lib/libtcmalloc.so", **ONE_MALLOC}),
    ({"allocator": Library("custom", "/lib/any.so")}, {"LD_PRELOAD": "/lib/any.so", **ONE_MALLOC}),
    (
        {"omp_runtime": INTEL, "allocator": LIBRARIES["tcmalloc"]},
        {"LD_PRELOAD": "/lib/libiomp5.so:/lib/libtcmalloc.so", **ONE_MALLOC},
    ),
    ({"retained_memory": 5 << 20}, {}),
    (
        {"retained_memory": 5 << 20, "allocator": "glibc"},
        {
            "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=5242880:glibc.malloc.trim_threshold=5242880:"
            "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"
        },
    ),
    ({"huge_pages": "thp"}, {}),
    ({"primitive_cache": 0}, {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0", "LRU_CACHE_CAPACITY": "0"}),
    ({"tokenizer_threads": 4}, {"RAYON_NUM_THREADS": "4"}),
    ({"tokenizer_threads": 1}, {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}),
    ({"hub_cache": "/models"}, {"HF_HUB_CACHE": "/models"}),
    (
        {"tensorflow_threads": 2},
        {"TF_NUM_INTRAOP_THREADS": "2", "TF_NUM_INTEROP_THREADS": "1", "TF_ENABLE_ONEDNN_OPTS": "1"},
    ),
    ({"cuda_allocator": "x:True"}, {"PYTORCH_CUDA_ALLOC_CONF": "x:True"}),
]


@pytest.mark.parametrize(("values", "variables"), EXPORTS, ids=lambda given: str(given)[:60])
def test_a_knob_exports_its_variables(values, variables):
    assert set_by(plan(**values), {"PATH": "/bin"}) == variables


def test_every_knob_with_variables_of_its_own_has_an_example():
    shown = {knob for values, _ in EXPORTS for knob in values}
    assert shown == set(NAMES) - {"memory_policy"}  # an instance of a class of its own, set by a call


@pytest.mark.parametrize(("values", "variables"), EXPORTS, ids=lambda given: str(given)[:60])
@pytest.mark.parametrize("source", ["rule", "profile"])
def test_a_variable_that_is_set_is_not_touched_by_a_rule(values, variables, source):
    before = dict.fromkeys(variables, "of-the-user")
    changed = set_by(plan(source, **values), before)
    libraries = preloads(plan(**values))
    assert changed == ({"LD_PRELOAD": ":".join([*libraries, "of-the-user"])} if libraries else {})


@pytest.mark.parametrize(("values", "variables"), EXPORTS, ids=lambda given: str(given)[:60])
def test_an_empty_variable_is_as_good_as_none(values, variables):
    assert set_by(plan(**values), dict.fromkeys(variables, "")) == variables


def test_what_is_asked_for_replaces_a_variable_that_is_set():
    asked = plan("user", threads=2, tokenizer_threads=1, hub_cache="/models", allocator="glibc")
    before = {
        "OMP_NUM_THREADS": "9",
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_CACHE": "/x",
        "GLIBC_TUNABLES": "glibc.malloc.check=1",
    }
    assert set_by(asked, before) == {
        "OMP_NUM_THREADS": "2",
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_CACHE": "/models",
        "GLIBC_TUNABLES": GLIBC_TUNABLES,
    }


@pytest.mark.parametrize(("kind", "settings"), [("mimalloc", MIMALLOC), ("jemalloc", JEMALLOC)])
def test_settings_of_a_library_are_the_users_even_when_the_library_is_asked_for(kind, settings):
    (name,) = settings
    assert set_by(plan("user", allocator=LIBRARIES[kind]), {name: "mine"}) == {
        "LD_PRELOAD": f"/lib/lib{kind}.so",
        **ONE_MALLOC,
    }


def test_a_library_stands_in_front_of_the_users():
    variables = set_by(plan(allocator=LIBRARIES["tcmalloc"]), {"LD_PRELOAD": "a.so:b.so"})
    assert variables == {"LD_PRELOAD": "/lib/libtcmalloc.so:a.so:b.so", **ONE_MALLOC}


def test_a_switch_of_the_users_for_onetbb_stays():
    variables = set_by(plan(allocator=LIBRARIES["mimalloc"]), {"TBB_ENABLE_SANITIZERS": "0"})
    assert variables == {"LD_PRELOAD": "/lib/libmimalloc.so", **MIMALLOC}


def test_glibcs_thresholds_are_set_together():
    """The mmap threshold alone would freeze the trim threshold at 128 KiB."""
    settings = dict(setting.rsplit("=", 1) for setting in GLIBC_TUNABLES.split(":"))
    for name in ("mmap_threshold", "trim_threshold"):
        assert int(settings[f"glibc.malloc.{name}"]) >= 1 << 30


# What is private to the program is saved, and put back when Python starts

EVERYTHING = {
    "threads": 2,
    "omp_wait_policy": "passive",
    "primitive_cache": 1,
    "tokenizer_threads": 1,
    "hub_cache": "/models",
    "tensorflow_threads": 1,
    "cuda_allocator": "x",
}
CASES = [
    (user, allocator)
    for user in (
        {},
        {"PYTHONPATH": "/user", "LD_PRELOAD": "x.so"},
        {"GLIBC_TUNABLES": "a=1"},
        {"MALLOC_CONF": "b:1", "OMP_NUM_THREADS": "5"},
        {"PYTHONPATH": "", "LD_PRELOAD": "", "GLIBC_TUNABLES": "", "MIMALLOC_PURGE_DELAY": ""},
        {"X": "=1", "LD_PRELOAD": "=y.so"},
    )
    for allocator in (*LIBRARIES.values(), "glibc", None)
]
UNDO = """
import importlib.abc, json, os, runpy, sys
class Nobody(importlib.abc.MetaPathFinder):  # no sitecustomize of a user is found
    def find_spec(self, name, path, target=None):
        if name == "sitecustomize":
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nobody())
results = []
for environment in json.load(sys.stdin):
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, sys.argv[1])
    before = sys.path[1:]
    sys.modules["sitecustomize"] = sys
    runpy.run_path(sys.argv[1] + "/sitecustomize.py")
    results.append([dict(os.environ), sys.path == before])
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def undone():
    """What programs see: runs the sitecustomize of SITE on each environment, in a process of its own."""
    launched = [
        launch_environment(plan(allocator=allocator, **EVERYTHING), {"PATH": "/bin", **user})
        for user, allocator in CASES
    ]
    done = subprocess.run(
        [sys.executable, "-c", UNDO, SITE],
        input=json.dumps(launched),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("number", range(len(CASES)), ids=[str(case)[:70] for case in CASES])
def test_what_is_private_is_undone_completely_and_the_rest_stays(undone, number):
    user, allocator = CASES[number]
    seen, _ = undone[number]
    before = {"PATH": "/bin", **user}
    assert {name: seen.get(name) for name in PRIVATE} == {name: before.get(name) for name in PRIVATE}
    public = launch_environment(plan(**EVERYTHING), before)
    kept = {name: value for name, value in public.items() if not name.startswith(SAVED)}
    kept |= ONE_MALLOC if isinstance(allocator, Library) else {}
    assert {name for name in seen if name not in PRIVATE} == {name for name in kept if name not in PRIVATE}
    assert all(seen[name] == kept[name] for name in seen if name not in PRIVATE)


def test_the_path_is_as_plain_python_has_it_and_in_the_same_order(undone):
    assert all(same for _, same in undone)


def test_openmp_variables_are_not_private():
    result = launch_environment(plan(threads=3, omp_wait_policy="active"), {})
    assert result["OMP_NUM_THREADS"] == "3" and result["OMP_WAIT_POLICY"] == "active"
    assert {name for name in result if name.startswith(SAVED)} == {f"{SAVED}PYTHONPATH"}


def test_a_real_plan_keeps_what_the_user_has_set():
    facts = replace(read_host(), allocators=(LIBRARIES["mimalloc"],), libc="glibc")
    user = {"OMP_NUM_THREADS": "7", "LD_PRELOAD": "x.so", "OMP_WAIT_POLICY": "active"}
    result = launch_environment(make_plan(facts, Goal("launch", {}, user)), user)
    assert {name: result[name] for name in user} == user
