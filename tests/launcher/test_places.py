"""Where programs run: masks and memory policies, read back from the processes themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from itertools import combinations

import pytest
from launching import (
    CORES,
    CPUS,
    FACTS,
    LIMIT,
    RUN,
    SIBLINGS,
    environment,
    launched,
    needs_two_cores,
    needs_two_threads,
    patched,
    plain,
    start,
)

from hfaccel import native
from hfaccel.plan import Request, place

PLACE = """
import json, os
mapped = sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line})
print(json.dumps({
    "cpus": sorted(os.sched_getaffinity(0)),
    "threads": os.environ.get("OMP_NUM_THREADS"),
    "tokenizers": os.environ.get("RAYON_NUM_THREADS"),
    "instance": os.environ.get("HFACCEL_INSTANCE"),
    "mapped": mapped,
}))
"""


def look(*options, **keywords):
    done = launched(*options, "-c", PLACE, **keywords)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stderr == b""
    return json.loads(done.stdout)


# What is asked for


@pytest.mark.parametrize("option", ["--cores-list", "--core_list"])
def test_a_cores_list_binds_the_program_and_counts_its_threads(option):
    place = look(option, str(CPUS[-1]))
    assert place["cpus"] == [CPUS[-1]] and place["threads"] == "1"


def test_a_cores_list_may_be_all_there_is():
    assert look("--cores-list", f"{CPUS[0]}-{CPUS[0]},{','.join(map(str, CPUS))}")["cpus"] == CPUS


def test_no_bind_leaves_the_mask():
    assert look("--no-bind")["cpus"] == CPUS


def test_threads_are_as_asked_for_and_the_mask_stays():
    place = look("--threads", "1")
    assert place["threads"] == "1" and place["cpus"] == look()["cpus"]


def test_a_node_is_one_cpu_of_each_of_its_cores():
    node = FACTS.topology.nodes_of(FACTS.limits.affinity)[0]
    on_node = next(n.cpus for n in FACTS.topology.nodes if n.number == node)
    expected = [cpu for cpu in CORES if cpu in on_node]
    assert look("--node-id", str(node))["cpus"] == expected
    assert look("--nodes-list", str(node))["cpus"] == expected


def test_logical_cores_are_all_cpus():
    place = look("--use-logical-cores")
    assert place["cpus"] == CPUS
    assert look("--use-logical-cores", "--cores-list", str(CPUS[-1]))["cpus"] == [CPUS[-1]]


@needs_two_cores
def test_of_siblings_one_is_used_and_with_logical_cores_both():
    first, second = CPUS[:2]
    seen = []
    for options in ([], ["--use-logical-cores"], ["--node-id", "0"], ["--cores-list", f"{first},{second}"]):
        done = start([*patched(SIBLINGS), *options, "-c", PLACE])
        seen.append((json.loads(done.stdout)["cpus"], json.loads(done.stdout)["threads"]))
    assert seen == [([first], "1"), ([first, second], "2"), ([first], "1"), ([first, second], "1")]


def test_an_executable_gets_the_same_place():
    done = launched(
        "--no-python", "--cores-list", str(CPUS[-1]), "grep", "Cpus_allowed_list", "/proc/self/status"
    )
    assert done.stdout.split() == [b"Cpus_allowed_list:", str(CPUS[-1]).encode()]


def test_an_executable_gets_arguments_streams_and_code_as_alone():
    code = 'cat; printf "%s|" "$0" "$@"; echo error >&2; exit 5'
    command = ["sh", "-c", code, "two words", "", "'", "--json"]
    expected, got = start(command, input=b"in"), launched("--no-python", *command, input=b"in")
    assert (got.stdout, got.stderr, got.returncode) == (expected.stdout, expected.stderr, 5)


def test_an_executable_has_the_signals_that_it_has_alone():
    """Python ignores SIGPIPE for itself; `yes | head -1` shall end under hfaccel-run as well."""
    command = ["grep", "^Sig", "/proc/self/status"]
    assert launched("--no-python", *command).stdout == start(command).stdout


# What was bound before


@needs_two_cores
def test_a_mask_that_exists_already_is_kept(tmp_path):
    done = start(["taskset", "-c", str(CPUS[1]), RUN, "-c", PLACE])
    place = json.loads(done.stdout)
    assert place["cpus"] == [CPUS[1]] and place["threads"] == "1"


# Memory


def may_set_memory_policy() -> bool:
    """Tried in a thread of its own: a policy is a thread's."""
    worked = []

    def attempt():
        try:
            native.arena.set_memory_policy("preferred", (0,))
            worked.append(True)
        except OSError:
            pass

    if native.arena is not None:
        thread = threading.Thread(target=attempt)
        thread.start()
        thread.join()
    return bool(worked)


needs_memory_policy = pytest.mark.skipif(
    not may_set_memory_policy(), reason="a memory policy cannot be set here"
)
POLICY = "from hfaccel.native import arena; print(arena.memory_policy())"
NODE = next(node.number for node in FACTS.topology.nodes if node.memory or len(FACTS.topology.nodes) == 1)


@needs_memory_policy
@pytest.mark.parametrize("mode", ["preferred", "bind", "interleave"])
def test_a_memory_policy_is_the_programs_own(mode):
    done = launched("--memory-policy", f"{mode}:{NODE}", "-c", POLICY)
    assert (done.stdout.decode(), done.stderr) == (f"{(mode, (NODE,))}\n", b"")


@needs_memory_policy
@needs_two_cores
def test_a_memory_policy_is_that_of_every_instance():
    done = launched("--ninstances", "2", "--memory_policy", f"bind:{NODE}", "-c", POLICY)
    assert sorted(done.stdout.decode().splitlines()) == [f"[{i}] {('bind', (NODE,))}" for i in (0, 1)]


@needs_memory_policy
def test_without_one_the_policy_is_that_of_before():
    done = launched("--memory-policy", "off", "-c", POLICY)
    assert done.stdout.decode() == f"{native.arena.memory_policy()}\n"


# Children


CHILDREN = """
import json, multiprocessing, os, subprocess, sys
show = [sys.executable, "-S", "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
seen = {"own": str(sorted(os.sched_getaffinity(0)))}
seen["subprocess"] = subprocess.check_output(show, text=True).strip()
reader, writer = os.pipe()
os.set_inheritable(writer, True)
os.posix_spawn(show[0], show, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
seen["posix_spawn"] = os.read(reader, 1000).decode().strip()
os.system(f"{show[0]} -S -c '{show[-1]}' >&{writer}")
seen["system"] = os.read(reader, 1000).decode().strip()
if os.fork() == 0:
    os.write(writer, str(sorted(os.sched_getaffinity(0))).encode())
    os._exit(0)
seen["fork"] = os.read(reader, 1000).decode()
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(1) as pool:
        seen["pool"] = str(sorted(pool.apply(os.sched_getaffinity, (0,))))
nested = "import os, subprocess; os.sched_getaffinity(0); subprocess.run(" + repr(show) + ")"
seen["grandchild"] = subprocess.check_output([sys.executable, "-c", nested], text=True).strip()
seen["own after"] = str(sorted(os.sched_getaffinity(0)))
seen["told"] = os.environ.get("HFACCEL_CHILDREN_AFFINITY")
print(json.dumps(seen))
"""


def masks(*options):
    done = start([*patched(SIBLINGS), *options, "-c", CHILDREN])
    assert done.returncode == 0, done.stderr.decode()
    seen = json.loads(done.stdout)
    assert seen.pop("told") is None
    own = seen.pop("own")
    assert seen.pop("own after") == own
    return own, set(seen.values())


@needs_two_cores
def test_children_of_a_mask_that_the_rule_chose_see_the_original_one():
    first, second = CPUS[:2]
    assert masks() == (f"[{first}]", {f"[{first}, {second}]"})


@needs_two_cores
@pytest.mark.parametrize("options", [["--cores-list", "FIRST"], ["--node-id", "0"], ["--ninstances", "1"]])
def test_children_of_a_mask_that_the_user_chose_inherit_it(options):
    first = f"[{CPUS[0]}]"
    assert masks(*(option.replace("FIRST", str(CPUS[0])) for option in options)) == (first, {first})


@needs_two_cores
def test_children_of_a_mask_that_was_left_alone_inherit_it():
    both = f"[{CPUS[0]}, {CPUS[1]}]"
    assert masks("--no-bind") == (both, {both})


@needs_two_cores
@pytest.mark.parametrize("variable", ["OMP_PROC_BIND", "OMP_PLACES", "KMP_AFFINITY", "GOMP_CPU_AFFINITY"])
def test_a_library_that_binds_the_thread_that_loads_it_does_not_bind_the_program(tmp_path, variable):
    """As OpenMP's runtimes do with one of these set, and torch loads one."""
    (tmp_path / "torch.py").write_text(f"import os; os.sched_setaffinity(0, [{CPUS[0]}])")
    code = "import os, torch; print(sorted(os.sched_getaffinity(0)))"
    variables = {variable: "close", "PYTHONPATH": str(tmp_path)}
    assert launched("--no-bind", "-c", code, env=variables).stdout.decode() == f"{CPUS}\n"
    assert plain("-c", code, env=variables).stdout.decode() == f"[{CPUS[0]}]\n"


# The same in a shell


def in_a_shell(*options, env=None):
    """What the shell line of --dry-run starts, as the output of each of its programs."""
    text = launched("--dry-run", *options, "-c", PLACE, env=env).stdout.decode()
    line = text.partition("the same without hfaccel (its children inherit the variables):\n")[2]
    done = start(["sh", "-c", line], env=env)
    assert done.returncode == 0 and done.stderr == b"", done.stderr.decode()
    return sorted(map(json.loads, done.stdout.splitlines()), key=lambda place: place["instance"] or "")


needs_taskset = pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed")
LINES = [
    [],
    ["--threads", "1"],
    ["--no-bind"],
    ["--cores-list", str(CPUS[-1])],
    ["--memory-allocator", "glibc", "--use-logical-cores"],
    ["--memory-allocator", "default", "--node-id", str(NODE), "--memory-policy", "off"],
]


@needs_taskset
@pytest.mark.parametrize("options", LINES, ids=" ".join)
def test_the_shell_line_starts_the_program_at_the_same_place(options):
    assert in_a_shell(*options) == [look(*options)]


@needs_taskset
def test_the_shell_line_keeps_the_users_variables():
    user = {"OMP_NUM_THREADS": "7", "LD_PRELOAD": "libm.so.6"}
    (shown,) = in_a_shell(env=user)
    assert shown == look(env=user)
    assert shown["threads"] == "7" and any("/libm.so" in path for path in shown["mapped"])


@needs_taskset
@needs_two_cores
def test_the_shell_lines_of_two_instances_start_both():
    options = ["--ninstances", "2"]
    done = launched(*options, "-c", PLACE)
    lines = sorted(done.stdout.decode().splitlines())
    assert in_a_shell(*options) == [json.loads(line.partition(" ")[2]) for line in lines]


@needs_two_cores
def test_the_shell_lines_of_two_instances_run_at_once():
    text = launched("--dry-run", "--ninstances", "2", "--no-python", "true").stdout.decode()
    first, second, last = text.partition("inherit the variables):\n")[2].splitlines()
    assert first.endswith("/true &") and second.endswith("/true &") and last == "wait"


def test_the_shell_line_has_the_arguments_as_they_are():
    arguments = ["two words", "'", "", "$HOME", "*", "a\nb", "größe"]
    code = "import sys; print(ascii(sys.argv))"
    text = launched("--dry-run", "-c", code, *arguments).stdout.decode()
    line = text.partition("inherit the variables):\n")[2]
    assert start(["sh", "-c", line]).stdout == plain("-c", code, *arguments).stdout


def test_the_shell_line_names_the_memory_policy():
    text = launched("--dry-run", "--memory-policy", f"bind:{NODE}", "-c", "pass").stdout.decode()
    assert f"numactl --membind={NODE} env " in text
    text = launched("--dry-run", "--memory-policy", f"preferred:{NODE}", "-c", "pass").stdout.decode()
    assert f"numactl --preferred={NODE} env " in text


def test_huge_pages_are_off_where_that_is_asked_for():
    code = (
        "import os\nfrom hfaccel.host import read_host\nfrom hfaccel.plan import Goal, make_plan\n"
        "print(make_plan(read_host(), Goal('process', {}, os.environ))['huge_pages'].value or 'off')"
    )
    plan = json.loads(launched("--dry-run", "--json", "--huge-pages", "off", "-c", code).stdout)["plan"]
    assert next(c for c in plan if c["knob"] == "huge_pages")["value"] == "off"
    assert launched("--huge-pages", "off", "-c", code).stdout == b"off\n", "the program must hear of it"


# Ranks


def rank(number, size, *options, env=None):
    return look(*options, env={"LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": str(size), **(env or {})})


@needs_two_cores
def test_two_ranks_share_the_cores():
    places = [rank(number, 2) for number in range(2)]
    slots = place(FACTS, Request(instances=2))
    assert [tuple(place["cpus"]) for place in places] == [slot.cpus for slot in slots]
    assert [place["threads"] for place in places] == [str(slot.threads) for slot in slots]
    assert not set(places[0]["cpus"]) & set(places[1]["cpus"])


@pytest.mark.parametrize(
    ("number", "size"),
    [(0, 1), (2, 2), (5, 2), ("", 2), (0, ""), ("x", 2), (-1, 2), (0, "²"), (0, 10**30), (1, len(CPUS) + 1)],
)
def test_a_rank_without_a_place_of_its_own_runs_as_alone(number, size):
    assert rank(number, size)["cpus"] == look()["cpus"]


@needs_two_cores
def test_a_rank_that_is_bound_already_stays():
    ranked = environment(LOCAL_RANK="0", LOCAL_WORLD_SIZE="2")
    command = ["taskset", "-c", str(CPUS[1]), RUN, "-c", PLACE]
    output = subprocess.check_output(command, env=ranked, timeout=LIMIT)
    assert json.loads(output)["cpus"] == [CPUS[1]]


@needs_two_cores
def test_what_the_user_says_of_a_rank_wins():
    assert rank(1, 2, "--no-bind")["cpus"] == CPUS
    assert rank(1, 2, "--cores-list", str(CPUS[0]))["cpus"] == [CPUS[0]]
    assert rank(1, 2, "--threads", "7")["threads"] == "7"
    assert rank(1, 2, env={"OMP_NUM_THREADS": "7"})["threads"] == "7"


@needs_two_cores
@needs_two_threads
@pytest.mark.parametrize("how", ["hfaccel-run in front of each rank", "configure() in each rank"])
def test_the_ranks_of_a_real_torchrun_do_not_overlap(tmp_path, how):
    script = tmp_path / "rank.py"
    configures = "import hfaccel; hfaccel.configure()\n" if how.startswith("configure") else ""
    script.write_text(
        f"{configures}import os, pathlib\n"
        "cpus = ','.join(map(str, sorted(os.sched_getaffinity(0))))\n"
        f"pathlib.Path({str(tmp_path)!r}, 'rank' + os.environ['LOCAL_RANK']).write_text(cpus)\n"
    )
    program = [str(script)] if configures else ["--no-python", RUN, str(script)]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = start([*torchrun, *program], cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    ranks = [(tmp_path / f"rank{number}").read_text() for number in range(2)]
    slots = place(FACTS, Request(instances=2))
    assert ranks == [",".join(map(str, slot.cpus)) for slot in slots]
    assert all(not set(a.split(",")) & set(b.split(",")) for a, b in combinations(ranks, 2))
