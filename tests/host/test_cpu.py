"""Processor, topology and affinity. A CPU number is what masks use; a core or package id is not."""

from __future__ import annotations

import os

import pytest

from hfaccel.host import LogicalCpu, Topology
from hfaccel.host.cpu import ISA_FLAGS, read_affinity, read_processor, read_topology
from hfaccel.host.tree import Tree

CPU = "sys/devices/system/cpu"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def put(tree, files):
    for name, text in files.items():
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def put_siblings(tree, siblings, name="thread_siblings_list"):
    """`siblings` maps a CPU number to the text of its list."""
    put(tree, {f"{CPU}/cpu{cpu}/topology/{name}": text + "\n" for cpu, text in siblings.items()})


def cores(tree):
    return [entry.core for entry in read_topology(tree).cpus]


# Processor


def test_the_first_processor_describes_all(tree):
    first = "vendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) : 8480+\nflags\t: fpu avx2 amx_tile\n"
    second = "\nvendor_id\t: Other\nmodel name\t: Other\nflags\t: avx512f\n"
    put(tree, {"proc/cpuinfo": first + second})
    processor = read_processor(tree)
    assert (processor.vendor, processor.model_name) == ("GenuineIntel", "Intel(R) Xeon(R) : 8480+")
    assert processor.isa == ("avx2", "amx_tile")
    assert processor.has("amx_tile")
    assert not processor.has("avx512f")


def test_flags_are_whole_words_in_a_fixed_order(tree):
    put(tree, {"proc/cpuinfo": f"flags : {' '.join(reversed(ISA_FLAGS))} avx512f_not\n"})
    assert read_processor(tree).isa == ISA_FLAGS
    put(tree, {"proc/cpuinfo": "flags : xavx2 avx512f_not\n"})
    assert read_processor(tree).isa == ()


def test_an_unknown_processor_has_neutral_values(tree):
    processor = read_processor(tree)
    assert (processor.vendor, processor.model_name, processor.isa) == ("", "", ())


# Topology


def test_siblings_may_be_split_or_adjacent(tree):
    put(tree, {f"{CPU}/online": "0-3\n"})
    put_siblings(tree, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})
    assert cores(tree) == [0, 1, 0, 1]
    put_siblings(tree, {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"})
    assert cores(tree) == [0, 0, 2, 2]


def test_core_ids_do_not_name_cores(tree):
    # On some VMs core_id is 0 on every CPU, and on hosts it repeats between sockets.
    put(
        tree,
        {f"{CPU}/online": "0-1", f"{CPU}/cpu0/topology/core_id": "0", f"{CPU}/cpu1/topology/core_id": "0"},
    )
    put_siblings(tree, {0: "0", 1: "1"})
    assert cores(tree) == [0, 1]


def test_newer_kernels_call_siblings_core_cpus(tree):
    put(tree, {f"{CPU}/online": "0-1\n"})
    put_siblings(tree, {0: "0-1", 1: "0-1"}, "core_cpus_list")
    assert cores(tree) == [0, 0]


def test_packages_and_nodes_are_read(tree):
    put(tree, {f"{CPU}/online": "0,2\n"})
    put(tree, {f"{CPU}/cpu{cpu}/topology/physical_package_id": f"{cpu // 2}\n" for cpu in (0, 2)})
    put(tree, {f"sys/devices/system/node/node{n}/cpulist": text for n, text in {0: "0-1", 10: "2-3"}.items()})
    assert read_topology(tree).cpus == (LogicalCpu(0, 0, 0, 0), LogicalCpu(2, 2, 1, 10))
    assert tree.problems == []


def test_without_topology_every_cpu_is_a_core(tree):
    put(tree, {f"{CPU}/online": "0-2\n"})
    assert read_topology(tree).cpus == tuple(LogicalCpu(cpu, cpu, -1, 0) for cpu in range(3))


def test_offline_cpus_are_left_out(tree):
    put(tree, {f"{CPU}/online": "0,3\n"})
    put_siblings(tree, {cpu: str(cpu) for cpu in range(4)})
    assert [entry.cpu for entry in read_topology(tree).cpus] == [0, 3]


@pytest.mark.parametrize("online", [None, "", "noise", "3-1"])
def test_without_a_list_of_cpus_the_processors_are_counted(tree, online):
    put(tree, {"proc/cpuinfo": "processor : 0\n\nprocessor : 1\n"})
    if online is not None:
        put(tree, {f"{CPU}/online": online})
    assert [entry.cpu for entry in read_topology(tree).cpus] == [0, 1]
    assert tree.problems[-1].endswith("assuming CPUs 0 to 1")


def test_a_host_without_files_has_one_cpu(tree):
    assert read_topology(tree).cpus == (LogicalCpu(0, 0, -1, 0),)


def test_odd_names_of_nodes_are_no_nodes(tree):
    put(tree, {f"{CPU}/online": "0", "sys/devices/system/node/node0.old/cpulist": "0"})
    assert read_topology(tree).cpus == (LogicalCpu(0, 0, -1, 0),)


# One CPU of each core


def topology(*cpus):
    return Topology(tuple(LogicalCpu(*entry) for entry in cpus))


def test_a_mask_is_reduced_to_its_first_cpu_of_each_core():
    split = topology((0, 0, 0, 0), (1, 1, 0, 0), (2, 0, 0, 0), (3, 1, 0, 0))
    assert split.one_per_core((0, 1, 2, 3)) == (0, 1)
    assert split.one_per_core((3, 2)) == (2, 3)
    assert split.one_per_core((2, 1, 0)) == (0, 1)
    assert split.one_per_core(()) == ()


def test_cores_of_two_packages_are_different_even_with_the_same_id():
    assert topology((0, 0, 0, 0), (1, 0, 1, 1)).one_per_core((0, 1)) == (0, 1)


def test_a_cpu_outside_the_topology_is_a_core_of_its_own():
    assert topology((0, 0, 0, 0)).one_per_core((0, 7, 9)) == (0, 7, 9)


# Affinity


@pytest.fixture
def four(tree):
    return topology(*((cpu, cpu, 0, 0) for cpu in range(4)))


def put_status(tree, value):
    put(
        tree,
        {"proc/self/status": f"Name:\tx\nCpus_allowed:\tf\nCpus_allowed_list:\t{value}\nMems_allowed:\t1\n"},
    )


def test_the_mask_is_what_the_kernel_shows(tree, four):
    put_status(tree, "1,3")
    assert read_affinity(tree, four) == (1, 3)


def test_the_mask_holds_online_cpus_only(tree, four):
    put_status(tree, "2-127")  # on a VM the kernel also lists CPUs that could be plugged in
    assert read_affinity(tree, four) == (2, 3)


@pytest.mark.parametrize("value", ["", "8-9"])
def test_a_mask_without_an_online_cpu_is_not_believed(tree, four, value):
    put_status(tree, value)
    assert read_affinity(tree, four) == (0, 1, 2, 3)


def test_an_odd_mask_is_a_problem_and_every_cpu(tree, four):
    put_status(tree, "f-0")
    assert read_affinity(tree, four) == (0, 1, 2, 3)
    (problem,) = tree.problems
    assert problem.startswith("/proc/self/status: ")


def test_a_captured_tree_without_a_mask_does_not_ask_this_machine(tree, four):
    assert read_affinity(tree, four) == (0, 1, 2, 3)


def test_the_live_mask_is_the_schedulers():
    live = Tree("/")
    assert read_affinity(live, read_topology(live)) == tuple(sorted(os.sched_getaffinity(0)))
