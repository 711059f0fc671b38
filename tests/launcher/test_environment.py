"""What hfaccel-run adds to the environment is for one process: neither it nor its children see it."""

from __future__ import annotations

import json

import pytest
from launching import FACTS, INHERITED, RUN, launched, plain, same

MIMALLOC = [library.path for library in FACTS.allocators if library.kind == "mimalloc"]
needs_mimalloc = pytest.mark.skipif(not MIMALLOC, reason="mimalloc 3 is not installed")
needs_glibc = pytest.mark.skipif(FACTS.libc != "glibc", reason="the libc is not glibc")

# The child gets the C library's environment, the one that os.environ only mirrors.
SHOW = """
import json, os, subprocess
maps = open("/proc/self/maps").read()
child = subprocess.run(["env", "-0"], stdout=subprocess.PIPE, check=True).stdout
child = dict(line.split("=", 1) for line in os.fsdecode(child).split("\\0") if line)
print(json.dumps({
    "own": dict(os.environ),
    "child": child,
    "mapped": sorted({line.split()[-1] for line in maps.splitlines() if ".so" in line}),
    "child_maps": subprocess.run(["cat", "/proc/self/maps"], stdout=subprocess.PIPE, text=True).stdout,
}))
"""


def show(done):
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return json.loads(done.stdout)


def without(names, mapping):
    return {name: value for name, value in mapping.items() if name not in names}


USERS = [
    {},
    {"PYTHONPATH": "/some/where:relative"},
    {"PYTHONPATH": ""},
    {"LD_PRELOAD": ""},
    {"MIMALLOC_PURGE_DELAY": "5"},
    {"MIMALLOC_VERBOSE": "0", "MALLOC_CONF": "", "UNRELATED": "größe = x:y"},
    {"OMP_WAIT_POLICY": "passive"},
]


@pytest.mark.parametrize("user", USERS, ids=str)
def test_the_program_and_its_children_see_the_users_environment(user):
    expected, got = show(plain("-c", SHOW, env=user)), show(launched("-c", SHOW, env=user))
    for whose in ("own", "child"):
        added = set(got[whose]) - set(expected[whose])
        assert added <= INHERITED
        assert without(added, got[whose]) == expected[whose]
    assert "mimalloc" not in got["child_maps"]


@needs_glibc
@pytest.mark.parametrize("allocator", ["auto", "glibc", "default", "mimalloc"])
@pytest.mark.parametrize(
    "user", [{"LD_PRELOAD": "libm.so.6"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}], ids=str
)
def test_the_users_preload_and_tunables_are_kept(user, allocator):
    if allocator == "mimalloc" and not MIMALLOC:
        pytest.skip("mimalloc 3 is not installed")
    expected = show(plain("-c", SHOW, env=user))
    got = show(launched("--memory-allocator", allocator, "-c", SHOW, env=user))
    assert without(INHERITED, got["own"]) == without(INHERITED, expected["own"])
    assert without(INHERITED, got["child"]) == without(INHERITED, expected["child"])
    # Both the user's library and the one asked for are there.
    preloaded = [path for path in expected["mapped"] if "/libm.so" in path]
    assert set(preloaded) <= set(got["mapped"])
    assert any("mimalloc" in path for path in got["mapped"]) == (allocator == "mimalloc")


@needs_mimalloc
def test_the_program_runs_on_mimalloc_and_its_children_do_not():
    got = show(launched("-c", SHOW))
    assert MIMALLOC[0] in got["mapped"]
    assert "mimalloc" not in got["child_maps"]
    assert not any("mimalloc" in path for path in show(plain("-c", SHOW))["mapped"])


@needs_mimalloc
def test_malloc_resolves_to_mimalloc():
    code = "from hfaccel.apply.verify import allocator_in_use; print(allocator_in_use())"
    assert launched("-c", code).stdout.startswith(b"libmimalloc.so")
    assert launched("--memory-allocator", "default", "-c", code).stdout.startswith(b"libc.so")


@needs_mimalloc
def test_an_allocator_is_taken_by_its_path_too():
    got = show(launched("--memory-allocator", MIMALLOC[0], "-c", SHOW))
    assert MIMALLOC[0] in got["mapped"]


def test_threads_are_inherited_by_children():
    got = show(launched("--threads", "1", "-c", SHOW))
    assert got["own"]["OMP_NUM_THREADS"] == got["child"]["OMP_NUM_THREADS"] == "1"


def test_the_users_thread_number_wins_over_the_rule_and_loses_to_the_option():
    user = {"OMP_NUM_THREADS": "3"}
    assert show(launched("-c", SHOW, env=user))["own"]["OMP_NUM_THREADS"] == "3"
    assert show(launched("--threads", "1", "-c", SHOW, env=user))["own"]["OMP_NUM_THREADS"] == "1"


SITES = {
    "runs": "import sys; sys.customized = 1; print('site', __name__, __file__, file=sys.stderr)",
    "raises": "raise RuntimeError('of the user')",
    "lacks a module": "import no_such_module",
    "changes the environment": "import os; os.environ['SET_BY_SITE'] = 'x'",
    "edits the path": "import sys; sys.path.insert(0, '/first')",
}


@pytest.mark.parametrize("name", SITES)
@pytest.mark.parametrize("file", ["sitecustomize.py", "sitecustomize/__init__.py", "usercustomize.py"])
def test_the_users_own_customization_runs(tmp_path, name, file):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(SITES[name])
    code = (
        "import os, sys; print(hasattr(sys, 'customized'), sys.path, os.environ.get('SET_BY_SITE'),"
        f"os.environ['PYTHONPATH'], sys.modules.get({file.partition('.')[0].partition('/')[0]!r}))"
    )
    user = {"PYTHONPATH": str(tmp_path)}
    expected, done = plain("-c", code, env=user), launched("-c", code, env=user)
    assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)
    # Once for hfaccel-run, which is a Python program too, and once for the program itself.
    assert done.stderr == 2 * expected.stderr
    if name == "runs" and file != "usercustomize.py":  # virtual environments switch that one off
        assert done.stdout.startswith(b"True") and done.stderr.startswith(b"site sitecustomize")


def test_without_the_users_customization_nothing_is_printed():
    assert launched("-c", "pass").stderr == b""


NESTED = """
import subprocess, sys
sys.exit(subprocess.run([sys.argv[1], "-c", sys.argv[2]]).returncode)
"""


def test_it_can_be_nested():
    expected, got = show(plain("-c", SHOW)), show(launched("-c", NESTED, RUN, SHOW))
    assert without(INHERITED, got["own"]) == without(INHERITED, expected["own"])
    assert without(INHERITED, got["child"]) == without(INHERITED, expected["child"])
    assert sum("mimalloc" in path for path in got["mapped"]) == bool(MIMALLOC)


def test_the_inner_of_two_starts_from_the_users_environment():
    got = show(launched("-c", NESTED, RUN, SHOW, env={"PYTHONPATH": "/user"}))
    assert got["own"]["PYTHONPATH"] == "/user"
    assert {name for name in got["own"] if name.startswith("HFACCEL_")} <= INHERITED


def test_a_program_can_tell_that_it_was_started_by_hfaccel_run():
    done = launched("-c", "import os; print(os.environ['HFACCEL_RUN'] == str(os.getpid()))")
    assert done.stdout == b"True\n"


def test_multiprocessing_children_start_clean(tmp_path):
    script = tmp_path / "spawns.py"
    script.write_text(
        "import multiprocessing, os\n"
        "def look(_):\n"
        "    return os.environ.get('PYTHONPATH'), os.environ.get('LD_PRELOAD')\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(look, [0]))\n"
    )
    assert same(str(script)).stdout == b"[(None, None)]\n"
