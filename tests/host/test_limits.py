"""What cgroups (versions 1 and 2), the hypervisor and the process's own limits leave to it."""

from __future__ import annotations

import os

import pytest
from trees import FORMS, tree_maker

from hfaccel.host import LogicalCpu, Topology
from hfaccel.host.limits import mounts, read_cpu_quota, read_cpuset, read_limits, read_memory_limit
from hfaccel.host.tree import Tree

CGROUP = "/sys/fs/cgroup"
OWN, MOUNTS = "/proc/self/cgroup", "/proc/self/mountinfo"


@pytest.fixture(params=FORMS)
def tree_of(request, tmp_path):
    return tree_maker(request.param, tmp_path)


@pytest.fixture
def v2(tree_of):
    """A tree with an own group and the files of some groups: `v2("/a", **{"a/cpu.max": "max"})`."""

    def make(own, **files):
        return tree_of({OWN: f"0::{own}\n", **{f"{CGROUP}/{name}": text for name, text in files.items()}})

    return make


def v1(quota, period="100000", folder="cpu,cpuacct", own=""):
    group = f"{CGROUP}/{folder}{own}"
    return {
        OWN: f"4:cpu,cpuacct:{own or '/'}\n1:name=systemd:/other\n",
        f"{group}/cpu.cfs_quota_us": quota,
        f"{group}/cpu.cfs_period_us": period,
    }


# CPU quota, version 2


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("800000 100000\n", 8.0),
        ("50000 100000", 0.5),
        ("150000 100000", 1.5),
        ("20000 10000", 2.0),
        ("max 100000\n", None),
    ],
)
def test_a_quota_is_time_per_period(v2, text, quota):
    tree = v2("/", **{"cpu.max": text})
    assert read_cpu_quota(tree) == quota
    assert tree.problems == []


@pytest.mark.parametrize("text", ["", "x", "100000", "0 100000", "100000 0", "-1 100000", "1 2 3"])
def test_an_odd_quota_is_a_problem_and_no_limit(v2, text):
    tree = v2("/", **{"cpu.max": text})
    assert read_cpu_quota(tree) is None
    (problem,) = tree.problems
    assert problem.startswith(f"{CGROUP}/cpu.max: quota and period were expected")


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 400 + " 1", "1 " + "9" * 5000])
def test_endless_digits_are_no_quota(v2, text):
    assert read_cpu_quota(v2("/", **{"cpu.max": text})) is None


@pytest.mark.parametrize(
    ("outer", "inner", "quota"),
    [("300000", "400000", 3.0), ("300000", "200000", 2.0), ("300000", "max", 3.0), ("max", "max", None)],
)
def test_the_smallest_quota_on_the_way_to_the_root_wins(v2, outer, inner, quota):
    tree = v2("/a/b", **{"a/cpu.max": f"{outer} 100000", "a/b/cpu.max": f"{inner} 100000"})
    assert read_cpu_quota(tree) == quota


def test_the_quota_of_another_group_is_not_ours(v2):
    tree = v2("/a", **{"b/cpu.max": "100000 100000", "a/b/cpu.max": "100000 100000"})
    assert read_cpu_quota(tree) is None


@pytest.mark.parametrize("own", ["/", "/kubepods/pod12/34", "/../../other", "", "no slash"])
def test_where_the_own_group_is_not_visible_the_root_is_read(v2, own):
    # In a container the root that is mounted is the own group, whatever the path in /proc.
    assert read_cpu_quota(v2(own, **{"cpu.max": "800000 100000"})) == 8.0


def test_a_colon_may_be_in_the_name_of_a_group(v2):
    tree = v2("/a:b.service", **{"a:b.service/cpu.max": "200000 100000"})
    assert read_cpu_quota(tree) == 2.0


@pytest.mark.parametrize("own", [None, "", "\n", "noise", "::"])
def test_without_the_list_of_groups_the_root_is_read(tree_of, own):
    assert read_cpu_quota(tree_of({OWN: own, f"{CGROUP}/cpu.max": "800000 100000"})) == 8.0


def test_without_cgroups_nothing_is_limited(tree_of):
    tree = tree_of({})
    assert read_cpu_quota(tree) is None
    assert read_memory_limit(tree) is None
    assert read_cpuset(tree) is None
    assert tree.problems == []


# CPU quota, version 1


@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
@pytest.mark.parametrize("own", ["", "/docker/12"])
def test_version_1_has_quota_and_period_in_two_files(tree_of, folder, own):
    assert read_cpu_quota(tree_of(v1("50000", folder=folder, own=own))) == 0.5


def test_version_1_says_unlimited_with_minus_one(tree_of):
    tree = tree_of(v1("-1"))
    assert read_cpu_quota(tree) is None
    assert tree.problems == []


@pytest.mark.parametrize(("quota", "period"), [("50000", None), (None, "100000")])
def test_version_1_without_one_of_them_has_no_quota(tree_of, quota, period):
    assert read_cpu_quota(tree_of(v1(quota, period))) is None


@pytest.mark.parametrize(
    ("quota", "period"), [("x", "100000"), ("50000", "0"), ("", "100000"), ("-2", "100000")]
)
def test_an_odd_quota_of_version_1_is_a_problem(tree_of, quota, period):
    tree = tree_of(v1(quota, period))
    assert read_cpu_quota(tree) is None
    (problem,) = tree.problems
    assert problem.startswith(f"{CGROUP}/cpu,cpuacct/cpu.cfs_quota_us: ")


def test_in_a_container_of_version_1_the_mounted_root_is_the_own_group(tree_of):
    assert read_cpu_quota(tree_of(v1("250000") | {OWN: "4:cpu,cpuacct:/docker/12"})) == 2.5


def test_the_cpuset_controller_is_not_the_cpu_controller(tree_of):
    files = v1("1", "1", folder="cpu", own="/of-cpuset")
    assert read_cpu_quota(tree_of(files | {OWN: "3:cpuset:/of-cpuset\n"})) is None


def test_both_versions_may_be_mounted(tree_of):
    files = v1("300000", own="/a") | {OWN: "4:cpu,cpuacct:/a\n0::/b", f"{CGROUP}/b/cpu.max": "200000 100000"}
    assert read_cpu_quota(tree_of(files)) == 2.0
    assert read_cpu_quota(tree_of(files | {f"{CGROUP}/b/cpu.max": "400000 100000"})) == 3.0


# Where the groups are mounted


def mount(place, filesystem="cgroup2", root="/", optional="shared:4", options="rw"):
    return f"31 24 0:27 {root} {place} rw,nosuid,relatime {optional} - {filesystem} {filesystem} {options}\n"


def quota_at(tree_of, path, mountinfo, own="/"):
    files = {OWN: f"4:cpu,cpuacct:{own}\n0::{own}\n", MOUNTS: mountinfo}
    if path.endswith("us"):
        files[path.replace("quota", "period")] = "100000"
    return read_cpu_quota(tree_of({**files, path: "200000 100000" if path.endswith("max") else "200000"}))


def test_version_2_may_be_mounted_anywhere(tree_of):
    assert quota_at(tree_of, "/odd/place/a/cpu.max", mount("/odd/place"), own="/a") == 2.0
    assert quota_at(tree_of, f"{CGROUP}/a/cpu.max", mount("/odd/place"), own="/a") is None


def test_a_hybrid_machine_has_version_2_in_unified(tree_of):
    mountinfo = mount(f"{CGROUP}/unified") + mount(f"{CGROUP}/cpu", "cgroup", options="rw,cpu")
    assert quota_at(tree_of, f"{CGROUP}/unified/cpu.max", mountinfo) == 2.0
    assert quota_at(tree_of, f"{CGROUP}/cpu/cpu.cfs_quota_us", mountinfo) == 2.0
    assert quota_at(tree_of, f"{CGROUP}/cpu.max", mountinfo) is None


def test_a_controller_is_found_by_its_option_and_not_by_its_folder(tree_of):
    mountinfo = mount("/groups/x", "cgroup", options="rw,cpu,cpuacct") + mount(
        "/groups/cpu", "cgroup", options="rw,cpuset"
    )
    assert quota_at(tree_of, "/groups/x/a/cpu.cfs_quota_us", mountinfo, own="/a") == 2.0
    assert quota_at(tree_of, "/groups/cpu/a/cpu.cfs_quota_us", mountinfo, own="/a") is None


@pytest.mark.parametrize(
    ("root", "own", "inside"),
    [
        ("/docker/12", "/docker/12", ""),  # the container's own group is what is mounted
        ("/docker/12", "/docker/12/sub", "/sub"),
        ("/docker", "/docker/12", "/12"),
        ("/", "/docker/12", "/docker/12"),
        ("/docker/1", "/docker/12", ""),  # another group with a name that begins alike
        ("/..", "/", ""),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_group_is_found_below_the_one_that_is_mounted(tree_of, root, own, inside, version):
    mountinfo = mount("/g", root=root) if version == 2 else mount("/g", "cgroup", root, options="rw,cpu")
    path = f"/g{inside}/cpu.max" if version == 2 else f"/g{inside}/cpu.cfs_quota_us"
    assert quota_at(tree_of, path, mountinfo, own=own) == 2.0


@pytest.mark.parametrize("optional", ["", "shared:4", "shared:4 master:2 propagate_from:1", "unbindable"])
def test_a_mount_may_have_any_number_of_optional_fields(tree_of, optional):
    assert quota_at(tree_of, "/g/cpu.max", mount("/g", optional=optional)) == 2.0


@pytest.mark.parametrize(
    "mountinfo", [None, "", "noise\n", " - \n", "1 2 3 / /g rw - cgroup2\n", mount("/", "ext4")]
)
def test_where_no_group_is_mounted_the_usual_places_are_read(tree_of, mountinfo):
    assert quota_at(tree_of, f"{CGROUP}/cpu.max", mountinfo) == 2.0
    assert quota_at(tree_of, f"{CGROUP}/cpu/cpu.cfs_quota_us", mountinfo) == 2.0


def test_mounts_are_in_order_and_only_those_wanted_are_captured(tree_of):
    text = (
        mount("/b", "ext4", root="/sub") + mount("/secret", "xfs") + mount("/a", "nfs4", options="rw,vers=4")
    )
    tree = tree_of({MOUNTS: text})
    assert mounts(tree, lambda mount: mount.place != "/secret") == [
        ("/sub", "/b", "ext4", ("rw",)),
        ("/", "/a", "nfs4", ("rw", "vers=4")),
    ]
    assert "secret" not in tree.seen[MOUNTS]


# Memory


@pytest.mark.parametrize(
    ("maximum", "high", "limit"),
    [
        ("1000\n", "max\n", 1000),
        ("max", "900", 900),
        ("1000", "900", 900),
        ("800", "900", 800),
        ("max", "max", None),
        ("0", "max", None),
        (None, "900", 900),
    ],
)
def test_a_memory_limit_is_the_smaller_of_max_and_high(v2, maximum, high, limit):
    tree = v2("/", **{"memory.max": maximum, "memory.high": high})
    assert read_memory_limit(tree) == limit
    assert tree.problems == []


@pytest.mark.parametrize(
    ("outer", "inner", "limit"), [("700", "max", 700), ("700", "800", 700), ("700", "600", 600)]
)
def test_the_smallest_memory_limit_on_the_way_to_the_root_wins(v2, outer, inner, limit):
    assert read_memory_limit(v2("/a/b", **{"a/memory.max": outer, "a/b/memory.max": inner})) == limit


@pytest.mark.parametrize(
    ("text", "limit"), [("1000", 1000), ("9223372036854771712", None), (f"{1 << 62}", None)]
)
def test_version_1_says_unlimited_with_a_number_near_2_to_63(tree_of, text, limit):
    tree = tree_of({OWN: "5:memory:/a", f"{CGROUP}/memory/a/memory.limit_in_bytes": text})
    assert read_memory_limit(tree) == limit
    assert tree.problems == []


@pytest.mark.parametrize("text", ["", "x", "-5", "1.5", "9" * 18 + "x", "9" * 20])
def test_an_odd_memory_limit_is_a_problem_and_no_limit(v2, text):
    tree = v2("/", **{"memory.max": text})
    assert read_memory_limit(tree) is None
    (problem,) = tree.problems
    assert problem.startswith(f"{CGROUP}/memory.max: bytes were expected")


# Cpusets


def test_the_nearest_cpuset_counts(v2):
    files = {"cpuset.cpus.effective": "0-7", "a/cpuset.cpus.effective": "0-3"}
    assert read_cpuset(v2("/a/b", **files)) == (0, 1, 2, 3)
    assert read_cpuset(v2("/a/b", **files, **{"a/b/cpuset.cpus.effective": "2\n"})) == (2,)
    assert read_cpuset(v2("/b", **files)) == tuple(range(8))


@pytest.mark.parametrize("text", ["", "noise", "3-1"])
def test_an_odd_cpuset_is_not_believed(v2, text):
    files = {"cpuset.cpus.effective": "0-1", "a/cpuset.cpus.effective": text}
    assert read_cpuset(v2("/a", **files)) == (0, 1)


def test_version_1_has_a_cpuset_of_another_name(tree_of):
    files = {OWN: "3:cpuset:/a\n", f"{CGROUP}/cpuset/a/cpuset.effective_cpus": "4-5\n"}
    assert read_cpuset(tree_of(files)) == (4, 5)


# The rest


FOUR = Topology(tuple(LogicalCpu(cpu, cpu, 0, 0) for cpu in range(4)))


@pytest.fixture
def limits_of(tree_of):
    return lambda files: read_limits(tree_of(files), FOUR)


def test_a_host_without_files_limits_nothing(limits_of):
    assert limits_of({}) == ((0, 1, 2, 3), None, None, None, (), (), None, 0.0, None, 1)


def test_memory_may_come_from_the_nodes_that_the_kernel_shows(limits_of):
    assert limits_of(
        {"/proc/self/status": "Mems_allowed:\tff\nMems_allowed_list:\t0,2-3\n"}
    ).memory_nodes == (
        0,
        2,
        3,
    )
    assert limits_of({"/proc/self/status": "Mems_allowed_list:\tx\n"}).memory_nodes == ()


def test_the_parents_mask_is_read_besides_the_own(limits_of):
    limits = limits_of(
        {
            "/probes/parent": "77\n",
            "/proc/77/status": "Name:\tbash\nCpus_allowed_list:\t0-3\n",
            "/proc/self/status": "Cpus_allowed_list:\t2\n",
        }
    )
    assert (limits.affinity, limits.parent_affinity) == ((2,), (0, 1, 2, 3))


@pytest.mark.parametrize("parent", ["0", "", "noise", "../self"])
def test_a_parent_that_cannot_be_read_has_no_mask(limits_of, parent):
    # In a container the parent is often outside, which the kernel shows as process 0.
    assert (
        limits_of({"/probes/parent": parent, "/proc/77/status": "Cpus_allowed_list:\t0\n"}).parent_affinity
        == ()
    )


def test_the_live_parent_is_the_process_that_started_this_one():
    live = Tree("/")
    limits = read_limits(live, FOUR)
    assert live.seen["/probes/parent"] == str(os.getppid())
    assert limits.parent_affinity == tuple(sorted(os.sched_getaffinity(os.getppid())))


STAT = "nr_periods 20\nnr_throttled {}\nthrottled_usec 5\n"


def test_throttling_is_that_of_the_own_group(limits_of):
    files = {OWN: "0::/a", f"{CGROUP}/cpu.stat": STAT.format(99), f"{CGROUP}/a/cpu.stat": STAT.format(7)}
    assert limits_of(files).throttled == 7


def test_a_group_that_counts_no_throttling_is_passed_over(limits_of):
    files = {f"{CGROUP}/a/cpu.stat": "usage_usec 5\n", f"{CGROUP}/cpu.stat": STAT.format(3)}
    assert limits_of({OWN: "0::/a", **files}).throttled == 3
    files = {f"{CGROUP}/unified/cpu.stat": "usage_usec 5\n", f"{CGROUP}/cpu/cpu.stat": STAT.format(4)}
    mountinfo = mount(f"{CGROUP}/unified") + mount(f"{CGROUP}/cpu", "cgroup", options="rw,cpu")
    assert limits_of({MOUNTS: mountinfo, **files}).throttled == 4


@pytest.mark.parametrize("number", ["", "x", "-1", "9" * 5000])
def test_an_odd_count_of_throttling_is_none(limits_of, number):
    assert limits_of({f"{CGROUP}/cpu.stat": STAT.format(number)}).throttled is None


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("cpu  60 10 10 5 5 0 0 10 0 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n", 0.1),
        ("cpu  60 0 0 0 0 0 0 40 60 0\n", 0.4),  # time of guests is in that of users already
        ("cpu  2 0 0 0 0 0 0 1 0 0\n", 0.3333),
        ("cpu  60 10 10 5 5 0 0 0 0 0\n", 0.0),
        ("cpu  0 0 0 0 0 0 0 0\n", 0.0),
        ("cpu  60 10 10 5 5 0 0\n", 0.0),
        ("cpu  60 10 10 5 5 0 0 x 0 0\n", 0.0),
        ("cpu0 1 1 1 1 1 1 1 1 1 1\n", 0.0),
        ("", 0.0),
    ],
)
def test_stolen_time_is_a_share_of_all(limits_of, text, share):
    assert limits_of({"/proc/stat": text}).steal == share


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        ("Max locked memory         65536                8388608              bytes", 65536),
        ("Max locked memory         0                    0                    bytes", 0),
        ("Max locked memory         unlimited            unlimited            bytes", None),
        ("Max locked memory", None),
        ("Max locked memory         " + "9" * 5000, None),
        ("Max address space         65536                65536                bytes", None),
    ],
)
def test_locked_memory_is_limited_by_the_soft_limit(limits_of, line, limit):
    text = f"Limit   Soft Limit   Hard Limit   Units\nMax file size 1 1 bytes\n{line}\n"
    assert limits_of({"/proc/self/limits": text}).locked_memory == limit
