"""Quotas and memory limits of cgroups, versions 1 and 2, seen from inside and from outside a container."""

from __future__ import annotations

import pytest

from hfaccel.host.limits import read_cpu_quota, read_memory_limit
from hfaccel.host.tree import Tree

CGROUP = "sys/fs/cgroup"


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def put(tree, own, **files):
    """`own` is the text of /proc/self/cgroup; `files` are pairs of a path and a text."""
    for name, text in {"proc/self/cgroup": own, **files}.items():
        path = tree.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def v1(tree, quota, period="100000", folder="cpu,cpuacct", own=""):
    group = f"{CGROUP}/{folder}{own}"
    files = {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": period}
    put(tree, f"4:cpu,cpuacct:{own or '/'}\n1:name=systemd:/other", **files)


# CPU quota, version 2


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("800000 100000", 8.0),
        ("50000 100000", 0.5),
        ("150000 100000", 1.5),
        ("20000 10000", 2.0),
        ("max 100000", None),
    ],
)
def test_a_quota_is_time_per_period(tree, text, quota):
    put(tree, "0::/", **{f"{CGROUP}/cpu.max": text})
    assert read_cpu_quota(tree) == quota
    assert tree.problems == []


@pytest.mark.parametrize("text", ["", "x", "100000", "0 100000", "100000 0", "-1 100000", "1 2 3"])
def test_an_odd_quota_is_a_problem_and_no_limit(tree, text):
    put(tree, "0::/", **{f"{CGROUP}/cpu.max": text})
    assert read_cpu_quota(tree) is None
    (problem,) = tree.problems
    assert problem.startswith(f"/{CGROUP}/cpu.max: quota and period were expected")


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + " 1", "1 " + "9" * 5000])
def test_endless_digits_are_no_quota(tree, text):
    put(tree, "0::/", **{f"{CGROUP}/cpu.max": text})
    assert read_cpu_quota(tree) is None


def test_the_smallest_quota_on_the_way_to_the_root_wins(tree):
    groups = {f"{CGROUP}/a/cpu.max": "300000 100000", f"{CGROUP}/a/b/cpu.max": "400000 100000"}
    put(tree, "0::/a/b", **groups)
    assert read_cpu_quota(tree) == 3.0
    put(tree, "0::/a/b", **{f"{CGROUP}/a/b/cpu.max": "200000 100000"})
    assert read_cpu_quota(tree) == 2.0


def test_the_quota_of_another_group_is_not_ours(tree):
    put(tree, "0::/a", **{f"{CGROUP}/b/cpu.max": "100000 100000", f"{CGROUP}/a/b/cpu.max": "100000 100000"})
    assert read_cpu_quota(tree) is None


def test_in_a_container_the_own_group_is_the_root_although_its_path_is_the_hosts(tree):
    put(tree, "0::/kubepods/pod12/34", **{f"{CGROUP}/cpu.max": "800000 100000"})
    assert read_cpu_quota(tree) == 8.0


def test_a_path_above_the_namespace_is_read_from_the_root(tree):
    put(tree, "0::/../../other", **{f"{CGROUP}/cpu.max": "800000 100000"})
    assert read_cpu_quota(tree) == 8.0


def test_without_the_list_of_groups_the_root_is_read(tree):
    put(tree, "", **{f"{CGROUP}/cpu.max": "800000 100000"})
    assert read_cpu_quota(tree) == 8.0


def test_without_cgroups_nothing_is_limited(tree):
    assert read_cpu_quota(tree) is None
    assert read_memory_limit(tree) is None
    assert tree.problems == []


# CPU quota, version 1


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("own", ["", "/docker/12"])
def test_version_1_has_quota_and_period_in_two_files(tree, folder, own):
    v1(tree, "50000", folder=folder, own=own)
    assert read_cpu_quota(tree) == 0.5


def test_version_1_says_unlimited_with_minus_one(tree):
    v1(tree, "-1")
    assert read_cpu_quota(tree) is None
    assert tree.problems == []


def test_version_1_without_a_period_has_no_quota(tree):
    put(tree, "4:cpu:/", **{f"{CGROUP}/cpu/cpu.cfs_quota_us": "50000"})
    assert read_cpu_quota(tree) is None


@pytest.mark.parametrize(
    ("quota", "period"), [("x", "100000"), ("50000", "0"), ("", "100000"), ("-2", "100000")]
)
def test_an_odd_quota_of_version_1_is_a_problem(tree, quota, period):
    v1(tree, quota, period)
    assert read_cpu_quota(tree) is None
    (problem,) = tree.problems
    assert problem.startswith(f"/{CGROUP}/cpu,cpuacct/cpu.cfs_quota_us: ")


def test_in_a_container_of_version_1_the_mounted_root_is_the_own_group(tree):
    put(
        tree,
        "4:cpu,cpuacct:/docker/12",
        **{f"{CGROUP}/cpu/cpu.cfs_quota_us": "250000", f"{CGROUP}/cpu/cpu.cfs_period_us": "100000"},
    )
    assert read_cpu_quota(tree) == 2.5


def test_the_cpuset_controller_is_not_the_cpu_controller(tree):
    group = f"{CGROUP}/cpu/of-cpuset"
    put(tree, "3:cpuset:/of-cpuset", **{f"{group}/cpu.cfs_quota_us": "1", f"{group}/cpu.cfs_period_us": "1"})
    assert read_cpu_quota(tree) is None


def test_both_versions_may_be_mounted(tree):
    v1(tree, "300000", own="/a")
    put(tree, "4:cpu,cpuacct:/a\n0::/b", **{f"{CGROUP}/b/cpu.max": "200000 100000"})
    assert read_cpu_quota(tree) == 2.0


# Memory


@pytest.mark.parametrize(
    ("maximum", "high", "limit"),
    [
        ("1000", "max", 1000),
        ("max", "900", 900),
        ("1000", "900", 900),
        ("max", "max", None),
        ("0", "max", None),
    ],
)
def test_a_memory_limit_is_the_smaller_of_max_and_high(tree, maximum, high, limit):
    put(tree, "0::/", **{f"{CGROUP}/memory.max": maximum, f"{CGROUP}/memory.high": high})
    assert read_memory_limit(tree) == limit
    assert tree.problems == []


def test_the_smallest_memory_limit_on_the_way_to_the_root_wins(tree):
    put(tree, "0::/a/b", **{f"{CGROUP}/a/b/memory.max": "max", f"{CGROUP}/a/memory.max": "700"})
    assert read_memory_limit(tree) == 700


@pytest.mark.parametrize(("text", "limit"), [("1000", 1000), ("9223372036854771712", None)])
def test_version_1_says_unlimited_with_a_number_near_2_to_63(tree, text, limit):
    put(tree, "5:memory:/a", **{f"{CGROUP}/memory/a/memory.limit_in_bytes": text})
    assert read_memory_limit(tree) == limit


@pytest.mark.parametrize("text", ["", "x", "-5", "1.5", "9" * 5000])
def test_an_odd_memory_limit_is_no_limit(tree, text):
    put(tree, "0::/", **{f"{CGROUP}/memory.max": text})
    assert read_memory_limit(tree) is None


@pytest.mark.parametrize("text", ["", "x", "-5"])
def test_an_odd_memory_limit_is_a_problem(tree, text):
    put(tree, "0::/", **{f"{CGROUP}/memory.max": text})
    read_memory_limit(tree)
    (problem,) = tree.problems
    assert problem.startswith(f"/{CGROUP}/memory.max: bytes were expected")
