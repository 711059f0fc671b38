"""CPUs, cores, nodes, caches, affinity. A CPU number is what masks use; a core or package id is not."""

from __future__ import annotations

import os

import pytest
from trees import FORMS, one_per_core, tree_maker

from hfaccel.host import Cache, HugePages, LogicalCpu, Node, Topology
from hfaccel.host.topology import read_affinity, read_topology
from hfaccel.host.tree import Tree

CPU, NODE = "/sys/devices/system/cpu", "/sys/devices/system/node"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


def siblings(lists, name="thread_siblings_list"):
    """`lists` maps a CPU number to the text of its list."""
    return {f"{CPU}/cpu{cpu}/topology/{name}": text + "\n" for cpu, text in lists.items()}


def cores(tree):
    return [entry.core for entry in read_topology(tree).cpus]


# Cores


@pytest.mark.parametrize(
    ("lists", "expected"),
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 0, 1]),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 0, 2, 2]),
        ({0: "0-3", 1: "0-3", 2: "0-3", 3: "0-3"}, [0, 0, 0, 0]),
        ({0: "0", 1: "1", 2: "2", 3: "3"}, [0, 1, 2, 3]),
    ],
)
def test_siblings_may_be_split_or_adjacent_or_many_or_none(tree_of, lists, expected):
    assert cores(tree_of({f"{CPU}/online": "0-3\n", **siblings(lists)})) == expected


def test_core_ids_do_not_name_cores(tree_of):
    # On some VMs core_id is 0 on every CPU, and on hosts it repeats between sockets.
    ids = {f"{CPU}/cpu{cpu}/topology/core_id": "0" for cpu in (0, 1)}
    assert cores(tree_of({f"{CPU}/online": "0-1", **ids, **siblings({0: "0", 1: "1"})})) == [0, 1]


def test_newer_kernels_call_siblings_core_cpus(tree_of):
    files = siblings({0: "0-1", 1: "0-1"}, "core_cpus_list")
    assert cores(tree_of({f"{CPU}/online": "0-1\n", **files})) == [0, 0]


def test_siblings_are_read_once_per_core_and_packages_once_per_package(tree_of):
    lists = siblings({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    packages = siblings(dict.fromkeys(range(4), "0-3"), "core_siblings_list")
    ids = siblings(dict.fromkeys(range(4), "0"), "physical_package_id")
    tree = tree_of({f"{CPU}/online": "0-3", **lists, **packages, **ids})
    read_topology(tree)
    assert [name.removeprefix(f"{CPU}/") for name in sorted(tree.seen) if "/topology/" in name] == [
        "cpu0/topology/core_siblings_list",
        "cpu0/topology/physical_package_id",
        "cpu0/topology/thread_siblings_list",
        "cpu1/topology/thread_siblings_list",
    ]


def test_packages_and_nodes_are_read(tree_of):
    ids = siblings({0: "0", 2: "1"}, "physical_package_id")
    lists = {f"{NODE}/node{number}/cpulist": text for number, text in {0: "0-1", 10: "2-3"}.items()}
    tree = tree_of({f"{CPU}/online": "0,2\n", **ids, **lists})
    assert read_topology(tree).cpus == (LogicalCpu(0, 0, 0, 0), LogicalCpu(2, 2, 1, 10))
    assert tree.problems == []


def test_a_package_is_of_all_the_cpus_in_it(tree_of):
    neighbours = siblings({0: "0,2", 1: "1,3"}, "core_siblings_list")
    ids = siblings({0: "0", 1: "7"}, "physical_package_id")
    topology = read_topology(tree_of({f"{CPU}/online": "0-3", **neighbours, **ids}))
    assert [entry.package for entry in topology.cpus] == [0, 7, 0, 7]


def test_without_topology_every_cpu_is_a_core(tree_of):
    topology = read_topology(tree_of({f"{CPU}/online": "0-2\n"}))
    assert topology.cpus == tuple(LogicalCpu(cpu, cpu, -1, 0) for cpu in range(3))
    assert topology.nodes == (Node(0, (0, 1, 2), 0, (10,), ()),)


def test_offline_cpus_are_told_apart(tree_of):
    lists = siblings({cpu: str(cpu) for cpu in range(4)})
    topology = read_topology(tree_of({f"{CPU}/online": "0,3\n", f"{CPU}/present": "0-3,8\n", **lists}))
    assert [entry.cpu for entry in topology.cpus] == [0, 3]
    assert topology.offline == (1, 2, 8)


@pytest.mark.parametrize("online", [None, "", "noise", "3-1"])
def test_without_a_list_of_cpus_the_processors_are_counted(tree_of, online):
    tree = tree_of({f"{CPU}/online": online, "/proc/cpuinfo": "processor : 0\n\nprocessor : 1\n"})
    assert [entry.cpu for entry in read_topology(tree).cpus] == [0, 1]
    assert tree.problems[-1] == f"{CPU}/online: missing; assuming CPUs 0 to 1"


def test_a_host_without_files_has_one_cpu(tree_of):
    topology = read_topology(tree_of({}))
    assert topology == ((LogicalCpu(0, 0, -1, 0),), (), (Node(0, (0,), 0, (10,), ()),), (), "")


# Hybrid processors


@pytest.mark.parametrize(
    ("large", "small", "efficient"),
    [("0-1", "2-3", [2, 3]), (None, "2-3", []), ("", "0-3", []), ("0-3", None, []), ("noise", "2", [])],
)
def test_small_cores_are_small_beside_large_ones(tree_of, large, small, efficient):
    files = {f"{CPU}/online": "0-3", "/sys/devices/cpu_core/cpus": large, "/sys/devices/cpu_atom/cpus": small}
    topology = read_topology(tree_of(files))
    assert [entry.cpu for entry in topology.cpus if entry.efficient] == efficient


# Nodes


def nodes(tree_of, **files):
    return read_topology(
        tree_of({f"{CPU}/online": "0-3", **{f"{NODE}/{k}": v for k, v in files.items()}})
    ).nodes


def test_nodes_are_in_order_of_their_numbers(tree_of):
    files = {f"node{number}/cpulist": "0" if number == 0 else "" for number in (10, 9, 2, 0, 11, 1)}
    assert [node.number for node in nodes(tree_of, **files)] == [0, 1, 2, 9, 10, 11]


def test_a_node_may_have_no_cpus(tree_of):
    found = nodes(tree_of, **{"node0/cpulist": "0-3", "node1/cpulist": "\n", "node1/distance": "17 10"})
    assert found == (Node(0, (0, 1, 2, 3), 0, (10, 20), ()), Node(1, (), 0, (17, 10), ()))


def test_a_cpu_that_no_node_claims_is_on_the_first(tree_of):
    files = {f"{CPU}/online": "0-1", f"{NODE}/node3/cpulist": "1", f"{NODE}/node5/cpulist": ""}
    assert [entry.node for entry in read_topology(tree_of(files)).cpus] == [3, 3]


@pytest.mark.parametrize("name", ["node0.old", "node", "nodes", "has_cpu", "node-1", "node" + "9" * 40])
def test_odd_names_of_nodes_are_no_nodes(tree_of, name):
    assert nodes(tree_of, **{f"{name}/cpulist": "0"}) == (Node(0, (0, 1, 2, 3), 0, (10,), ()),)


@pytest.mark.parametrize("text", [None, "", "10", "10 21 21", "10 x", "noise"])
def test_without_distances_those_of_the_kernel_are_assumed(tree_of, text):
    files = {
        "node0/cpulist": "0-1",
        "node1/cpulist": "2-3",
        "node0/distance": text,
        "node1/distance": "21 10",
    }
    assert [node.distances for node in nodes(tree_of, **files)] == [(10, 20), (21, 10)]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("Node 0 MemTotal:       65536 kB\n", 65536 * 1024),
        ("Node 0 MemFree:  1 kB\nNode 0 MemTotal: 7 kB\nNode 0 MemUsed: 3 kB\n", 7 * 1024),
        (None, 0),
        ("Node 0 MemTotal:", 0),
        ("Node 0 MemTotal: x kB", 0),
        ("Node 0 MemTotal: " + "9" * 5000, 0),
    ],
)
def test_a_node_has_memory_in_bytes(tree_of, text, size):
    (node,) = nodes(tree_of, **{"node0/cpulist": "0-3", "node0/meminfo": text})
    assert node.memory == size


def pool(size, total, free):
    base = f"node0/hugepages/hugepages-{size}kB"
    return {f"{base}/nr_hugepages": total, f"{base}/free_hugepages": free}


def test_pools_of_huge_pages_are_of_a_node_by_size(tree_of):
    files = {"node0/cpulist": "0-3", **pool("1048576", "2", "1"), **pool("2048", "512", None)}
    (node,) = nodes(tree_of, **files)
    assert node.huge_pages == (HugePages(2 << 20, 512, 0), HugePages(1 << 30, 2, 1))


@pytest.mark.parametrize(
    ("size", "total"), [("2048", "0"), ("2048", ""), ("2048", "x"), ("x", "5"), ("", "5")]
)
def test_an_empty_or_odd_pool_is_none(tree_of, size, total):
    (node,) = nodes(tree_of, **{"node0/cpulist": "0-3", **pool(size, total, "0")})
    assert node.huge_pages == ()


# Caches and the governor


def cache(index, level="1", size="32K", kind="Data", shared="0-1", cpu=0):
    values = {"level": level, "size": size, "type": kind, "shared_cpu_list": shared}
    return {f"{CPU}/cpu{cpu}/cache/index{index}/{name}": value for name, value in values.items()}


def caches(tree_of, *entries, online="0-3"):
    files = {name: text for entry in entries for name, text in entry.items()}
    return read_topology(tree_of({f"{CPU}/online": online, **files})).caches


@pytest.mark.parametrize(
    ("text", "size"), [("48K", 48 << 10), ("2048K", 2 << 20), ("105M", 105 << 20), ("1G", 1 << 30)]
)
def test_the_size_of_a_cache_is_in_bytes(tree_of, text, size):
    assert caches(tree_of, cache(0, size=text)) == (Cache(1, "Data", size, (0, 1)),)


@pytest.mark.parametrize(
    "odd",
    [
        *({"size": size} for size in (None, "", "K", "32", "xK", "-1K", "32T", "9" * 5000 + "K")),
        *({"level": level} for level in (None, "", "x")),
    ],
)
def test_an_odd_cache_is_none(tree_of, odd):
    assert caches(tree_of, cache(0, **odd)) == ()


def test_caches_are_in_order_of_their_levels(tree_of):
    instructions = cache(0, "1", kind="Instruction")
    found = caches(tree_of, cache(10, "3"), cache(2, "2"), cache(1, "1"), instructions)
    names = [f"{entry.level} {entry.kind}" for entry in found]
    assert names == ["1 Data", "1 Instruction", "2 Data", "3 Data"]


def test_a_cache_that_says_nothing_else_is_of_its_cpu(tree_of):
    assert caches(tree_of, cache(0, kind=None, shared=None)) == (Cache(1, "", 32 << 10, (0,)),)


def test_caches_and_governor_are_of_the_first_cpu_that_is_online(tree_of):
    files = {**cache(0, cpu=2), **cache(0, cpu=0, size="7K"), f"{CPU}/cpu0/cpufreq/scaling_governor": "no"}
    files |= {f"{CPU}/online": "2-3", f"{CPU}/cpu2/cpufreq/scaling_governor": "performance\n"}
    topology = read_topology(tree_of(files))
    assert [entry.size for entry in topology.caches] == [32 << 10]
    assert topology.governor == "performance"


# What follows from the topology


def topology(*cpus):
    return Topology(tuple(LogicalCpu(*entry) for entry in cpus))


def test_a_mask_is_reduced_to_its_first_cpu_of_each_core():
    split = topology((0, 0, 0, 0), (1, 1, 0, 0), (2, 0, 0, 0), (3, 1, 0, 0))
    assert one_per_core(split, (0, 1, 2, 3)) == (0, 1)
    assert one_per_core(split, (3, 2)) == (2, 3)
    assert one_per_core(split, (2, 1, 0)) == (0, 1)
    assert one_per_core(split, ()) == ()
    assert split.cores((0, 1, 2)) == ((0, 2), (1,))


def test_cores_of_one_node_are_neighbours():
    interleaved = topology((0, 0, 0, 0), (1, 1, 1, 1), (2, 2, 0, 0), (3, 3, 1, 1))
    assert interleaved.cores((0, 1, 2, 3)) == ((0,), (2,), (1,), (3,))
    assert interleaved.nodes_of((3, 1)) == (1,)
    assert interleaved.nodes_of((3, 2)) == (0, 1)
    assert interleaved.nodes_of((9,)) == ()
    assert topology((0, 0, 0, 8), (1, 1, 0, 1)).nodes_of((0, 1)) == (1, 8)


def test_cores_of_two_packages_are_different_even_with_the_same_id():
    assert one_per_core(topology((0, 0, 0, 0), (1, 0, 1, 1)), (0, 1)) == (0, 1)


def test_a_cpu_outside_the_topology_is_a_core_of_its_own():
    assert one_per_core(topology((0, 0, 0, 0)), (0, 7, 9)) == (0, 7, 9)


@pytest.mark.parametrize(
    ("places", "packages", "nodes_per_package"),
    [
        ([(0, 0)], 1, 1),
        ([(0, 0), (0, 1)], 1, 2),
        ([(0, 0), (1, 1)], 2, 1),
        ([(0, 0), (0, 1), (1, 2), (1, 3)], 2, 2),  # sub-NUMA clustering
        ([(0, 0), (1, 0)], 2, 1),  # two sockets of a VM without nodes
        ([(-1, 0), (-1, 0)], 1, 1),
    ],
)
def test_packages_and_their_nodes_are_counted(places, packages, nodes_per_package):
    cpus = [(cpu, cpu, package, node) for cpu, (package, node) in enumerate(places)]
    counted = topology(*cpus)
    assert (counted.packages, counted.nodes_per_package) == (packages, nodes_per_package)


# Affinity


FOUR = topology(*((cpu, cpu, 0, 0) for cpu in range(4)))


def status(value):
    lines = ("Name:\tx", "Cpus_allowed:\tf", f"Cpus_allowed_list:\t{value}", "Mems_allowed:\t1", "Uid:\t0")
    return {"/proc/self/status": "\n".join(lines)}


def test_the_mask_is_what_the_kernel_shows(tree_of):
    tree = tree_of(status("1,3"))
    assert read_affinity(tree, FOUR) == (1, 3)
    assert tree.seen["/proc/self/status"] == "Cpus_allowed_list:\t1,3"


def test_the_mask_holds_online_cpus_only(tree_of):
    # On a VM the kernel also lists CPUs that could be plugged in.
    assert read_affinity(tree_of(status("2-127")), FOUR) == (2, 3)


@pytest.mark.parametrize("value", ["", "8-9"])
def test_a_mask_without_an_online_cpu_is_not_believed(tree_of, value):
    assert read_affinity(tree_of(status(value)), FOUR) == (0, 1, 2, 3)


def test_an_odd_mask_is_a_problem_and_every_cpu(tree_of):
    tree = tree_of(status("f-0"))
    assert read_affinity(tree, FOUR) == (0, 1, 2, 3)
    (problem,) = tree.problems
    assert problem.startswith("/proc/self/status: ")


def test_a_captured_host_without_a_mask_does_not_ask_this_machine(tree_of):
    assert read_affinity(tree_of({}), FOUR) == (0, 1, 2, 3)


def test_the_live_mask_is_the_schedulers():
    live = Tree("/")
    assert read_affinity(live, read_topology(live)) == tuple(sorted(os.sched_getaffinity(0)))


def test_where_the_kernel_shows_no_mask_the_scheduler_is_asked(monkeypatch):
    live = Tree("/")
    monkeypatch.setattr(live, "lines", lambda *_: [])
    assert read_affinity(live, FOUR) == tuple(sorted(os.sched_getaffinity(0)))
