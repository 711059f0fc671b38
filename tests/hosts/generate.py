"""Writes the captured hosts beside this file, one row of HOSTS each. Their expectations, NAME.json, are
thought out by hand from the same description. zen4-vm*.txt are a real machine and not written here.

    python tests/hosts/generate.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import chips
from files import (
    CGROUP2,
    DEBIAN,
    DISK,
    OVERLAY,
    VENV,
    Host,
    cgroup1,
    files_of,
    group,
    own_group1,
    quota1,
    root_group,
)

import hfaccel.host
from hfaccel.host.tree import Tree, capture

DOCKER, JOB = "/docker/2f6c1d", "/slurm/uid_1000/job_4711"

HOSTS = (
    Host(
        "xeon-2-sockets",
        "A workstation with two small sockets of Sapphire Rapids, nothing limited. Siblings are 8 apart.",
        chips.SPR_8480,
        nodes=((0, 4, 32), (1, 4, 32)),
        kernel="6.8.0-45-generic",
        thp="always",
        small_thp={},
        files=root_group("0-15")
        | {"/proc/self/cgroup": "0::/user.slice/user-1000.slice/session-2.scope"}
        | group("/sys/fs/cgroup/user.slice")
        | group("/sys/fs/cgroup/user.slice/user-1000.slice"),
        libraries=(f"{DEBIAN}/libjemalloc.so.2", f"{DEBIAN}/libtcmalloc_minimal.so.4"),
    ),
    Host(
        "cascade-lake-interleaved",
        "A Dell server with two sockets of Cascade Lake, RHEL 8. The firmware numbers their CPUs\n"
        "in turns, so neighbouring numbers are on different nodes. The kernel predates AMX's system call.",
        chips.CLX_6248,
        nodes=((0, 20, 192), (1, 20, 192)),
        numbering="interleaved",
        kernel="4.18.0-553.el8_10.x86_64",
        locked="65536",
        governor="performance",
        thp="always",
        glibc="2.28",
        libc="/usr/lib64/libc-2.28.so",
        mounts=(DISK, *cgroup1("/")),
        files=own_group1("/user.slice")
        | quota1("", -1)
        | quota1("/user.slice", -1)
        | {"/sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0-79"}
        | {"/sys/fs/cgroup/memory/user.slice/memory.limit_in_bytes": "9223372036854771712"},
    ),
    Host(
        "ice-lake-snc2",
        "Two sockets of Ice Lake with sub-NUMA clustering: each socket is two nodes.",
        chips.ICX_8358,
        nodes=((0, 16, 128), (0, 16, 128), (1, 16, 128), (1, 16, 128)),
        distances=(11, 20),
        kernel="5.14.0-427.el9.x86_64",
        governor="performance",
        locked="unlimited",
        thp="always",
        glibc="2.34",
        libc="/usr/lib64/libc.so.6",
        libraries=("/usr/lib64/libjemalloc.so.2",),
        files=root_group("0-127"),
    ),
    Host(
        "sapphire-rapids-openmp",
        "Two sockets of Sapphire Rapids with AMX. Conda brought Intel's OpenMP runtime and an administrator\n"
        "reserved huge pages, on node 0 only.",
        chips.SPR_8480,
        nodes=((0, 56, 256), (1, 56, 256)),
        kernel="6.8.0-45-generic",
        governor="powersave",
        small_thp={},
        glibc="2.39",
        files=root_group("0-223")
        | {
            f"/sys/devices/system/node/node0/hugepages/hugepages-{name}": text
            for name, text in {
                "2048kB/nr_hugepages": "4096",
                "2048kB/free_hugepages": "4000",
                "1048576kB/nr_hugepages": "2",
                "1048576kB/free_hugepages": "2",
            }.items()
        },
        libraries=("/opt/conda/lib/libiomp5.so", f"{DEBIAN}/libtcmalloc_minimal.so.4"),
        probes={"library_folders": "/opt/conda/lib"},
    ),
    Host(
        "sapphire-rapids-gvisor",
        "A gVisor sandbox on Sapphire Rapids: AMX is among the flags, but programs may not use it.\n"
        "The sandbox shows no topology, no huge pages and no groups.",
        chips.SPR_8480,
        nodes=((0, 8, 32),),
        threads=1,
        kernel="4.4.0",
        mounts=("1 0 0:14 / / rw - overlay none rw", "2 1 0:15 / /proc rw - proc none rw"),
        libc="/lib/x86_64-linux-gnu/libc.so.6",
        glibc="2.36",
        cache="/root/.cache/huggingface/hub",
        probes={"parent": "0"},
        files=dict.fromkeys(("/sys/devices/system/cpu/cpu", "/sys/devices/system/node", "/sys/kernel"), "")
        | {"/proc/self/status": "Cpus_allowed_list:\t0-7\nMems_allowed_list:\t0"}
        | {"/proc/self/limits": "Max locked memory         65536                65536                bytes"}
        | dict.fromkeys(("/proc/41/status", "/proc/self/cgroup"), ""),
    ),
    Host(
        "emerald-rapids-cpuset",
        "A container with a cpuset of 16 CPUs (8 cores) on two sockets of Emerald Rapids. The user capped\n"
        "oneDNN below AMX and fp16, with lower case letters.",
        chips.EMR_8592,
        nodes=((0, 64, 512), (1, 64, 512)),
        kernel="6.6.31-flatcar",
        affinity="0-7,128-135",
        mounts=(OVERLAY, CGROUP2),
        glibc="2.36",
        cache="/root/.cache/huggingface/hub",
        probes={"ONEDNN_MAX_CPU_ISA": "avx512_core_bf16", "parent": "0"},
        files=group(cpus="0-7,128-135", memory="68719476736") | {"/proc/41/status": ""},
    ),
    Host(
        "granite-rapids-cxl",
        "One socket of Granite Rapids with three sub-NUMA clusters; node 3 is CXL memory and has no CPUs.",
        chips.GNR_6980,
        nodes=((0, 43, 256), (0, 43, 256), (0, 42, 256), (0, 0, 512)),
        distances=(12, 24),
        kernel="6.11.0-21-generic",
        governor="performance",
        small_thp={64: "madvise"},
        glibc="2.40",
        files=root_group("0-255"),
    ),
    Host(
        "skylake-offline",
        "An AWS m5.4xlarge (Skylake) whose user switched the second thread of each core off: CPUs 8-15.",
        chips.SKX_8175,
        nodes=((0, 8, 64),),
        offline="8-15",
        kernel="5.10.230-223.885.amzn2.x86_64",
        affinity="0-7",
        steal=1000,
        glibc="2.26",
        libc="/usr/lib64/libc-2.26.so",
        files=root_group("0-7"),
    ),
    Host(
        "zen3-nps4",
        "Two sockets of EPYC 7763 (Zen 3) as eight nodes (NPS4). An L3 serves eight cores.",
        chips.EPYC_7763,
        nodes=((0, 16, 64),) * 4 + ((1, 16, 64),) * 4,
        distances=(12, 32),
        governor="schedutil",
        files=root_group("0-255"),
    ),
    Host(
        "uneven-nodes",
        "A VMware guest with 12 CPUs on one node and 4 on the other. Its affinity mask names 128 CPUs,\n"
        "which could be plugged in, and another guest takes 5 % of its time.",
        chips.ICX_8358,
        nodes=((0, 12, 48), (1, 4, 16)),
        threads=1,
        distances=(11, 20),
        affinity="0-127",
        steal=50000,
        files=root_group("0-15"),
    ),
    Host(
        "zen5-twelve-nodes",
        "One socket of EPYC 9655 (Zen 5) with each L3 as a node of its own: twelve, and node10 sorts\n"
        "after node9.",
        chips.EPYC_9655,
        nodes=((0, 8, 32),) * 12,
        distances=(11, 32),
        kernel="6.11.0-21-generic",
        small_thp={},
        glibc="2.40",
        files=root_group("0-191"),
    ),
    Host(
        "vm-adjacent-siblings",
        "An Alpine container on an Azure VM (Zen 4): CPUs 0 and 1 are one core, and the libc is musl.",
        chips.EPYC_9654,
        nodes=((0, 2, 16),),
        numbering="adjacent",
        kernel="6.8.0-1021-azure",
        small_thp={},
        mounts=(OVERLAY, CGROUP2),
        libc="/lib/ld-musl-x86_64.so.1",
        glibc="",
        cache="/root/.cache/huggingface/hub",
        probes={"library_folders": "/usr/local/lib", "parent": "0"},
        files=group(cpus="0-3") | {"/proc/41/status": ""},
    ),
    Host(
        "vm-no-topology",
        "A small VM without any of /sys: CPUs are counted in /proc/cpuinfo. One of them is not allowed.",
        chips.SKX_8175,
        nodes=((0, 4, 8),),
        threads=1,
        kernel="5.10.0-32-amd64",
        affinity="1-3",
        glibc="2.31",
        libc=f"{DEBIAN}/libc-2.31.so",
        mounts=(DISK,),
        files={"/sys": ""},
    ),
    Host(
        "raptor-lake-hybrid",
        "A desktop with a hybrid Raptor Lake: CPUs 0-15 are 8 large cores, 16-23 are 8 small ones.\n"
        "Fedora, with huge pages for shared memory on request.",
        chips.I7_13700,
        nodes=((0, 8, 32),),
        numbering="adjacent",
        small_cores=8,
        kernel="6.11.4-301.fc41.x86_64",
        governor="powersave",
        shmem="advise",
        small_thp={},
        glibc="2.40",
        libc="/usr/lib64/libc.so.6",
        files=root_group("0-23"),
    ),
    Host(
        "pod-8-of-384",
        "A pod with a quota of 8 CPUs on two sockets of EPYC 9654, 384 CPUs: it may run on any of them. Its\n"
        "namespace calls its own group /. It has been throttled a lot.",
        chips.EPYC_9654,
        nodes=((0, 96, 768), (1, 96, 768)),
        distances=(12, 32),
        kernel="6.1.115-126.197.amzn2023.x86_64",
        locked="unlimited",
        mounts=(OVERLAY, CGROUP2),
        glibc="2.36",
        cache="/root/.cache/huggingface/hub",
        probes={"parent": "0"},
        files=group(cpu="800000 100000", memory="17179869184", cpus="0-383", throttled=9500)
        | {"/proc/41/status": ""},
    ),
    Host(
        "pod-v2-quota",
        "A pod with a quota of 8 CPUs on two sockets of Ice Lake; its image brings mimalloc 3. /proc names\n"
        "the group by the host's path, of which only the root is mounted.",
        chips.ICX_8358,
        nodes=((0, 16, 128), (1, 16, 128)),
        mounts=(OVERLAY, CGROUP2),
        cache="/models/hub",
        files=group(cpu="800000 100000", memory="17179869184", high="12884901888", cpus="0-63", throttled=12)
        | {"/proc/self/cgroup": "0::/kubepods.slice/kubepods-pod7d.slice/cri-containerd-5a.scope"},
        libraries=("/usr/local/lib/libmimalloc.so.3", f"{DEBIAN}/libmimalloc.so.2.0"),
    ),
    Host(
        "pod-half-cpu",
        "A pod with half a CPU on Cascade Lake, whose image brings mimalloc in the environment's packages.",
        chips.CLX_6248,
        nodes=((0, 4, 32),),
        kernel="6.1.112+",
        mounts=(OVERLAY, CGROUP2),
        glibc="2.36",
        cache="/root/.cache/huggingface/hub",
        files=group(cpu="50000 100000", memory="1073741824", cpus="0-7", throttled=77),
        libraries=(f"{VENV.partition(':')[0]}/libmimalloc.so.3",),
    ),
    Host(
        "cgroup-v1-half-cpu",
        "Docker with groups of version 1 and half a CPU on Broadwell. /proc names the group by the host's\n"
        "path; what is mounted in the container is that group itself. No huge pages.",
        chips.E5_2686,
        nodes=((0, 2, 16),),
        kernel="4.14.355-276.618.amzn2.x86_64",
        locked="65536",
        thp="never",
        glibc="2.36",
        cache="/root/.cache/huggingface/hub",
        probes={"parent": "0"},
        mounts=(OVERLAY, *cgroup1(DOCKER)),
        files=own_group1(DOCKER)
        | quota1("", 50000, throttled=31)
        | {"/sys/fs/cgroup/memory/memory.limit_in_bytes": "536870912", "/proc/41/status": ""}
        | {"/sys/fs/cgroup/cpuset/cpuset.effective_cpus": "0-3"},
    ),
    Host(
        "nested-slices",
        "A systemd service on Zen 3 in nested slices: the service may use 6 CPUs and 32 GiB, but the slice\n"
        "around it only 4 CPUs and 16 GiB.",
        chips.EPYC_7763,
        nodes=((0, 16, 128),),
        files=root_group("0-31")
        | {"/proc/self/cgroup": "0::/batch.slice/batch-nlp.slice/embed.service"}
        | group("/sys/fs/cgroup/batch.slice", memory="68719476736")
        | group("/sys/fs/cgroup/batch.slice/batch-nlp.slice", cpu="400000 100000", high="17179869184")
        | group(
            "/sys/fs/cgroup/batch.slice/batch-nlp.slice/embed.service",
            cpu="600000 100000",
            memory="34359738368",
            throttled=5,
        ),
    ),
    Host(
        "thp-never",
        "A database server on Zen 4 whose administrator switched transparent huge pages off.",
        chips.EPYC_9654,
        nodes=((0, 32, 384),),
        kernel="6.1.0-26-amd64",
        governor="performance",
        thp="never",
        glibc="2.36",
        files=root_group("0-63"),
        libraries=(f"{DEBIAN}/libjemalloc.so.2",),
    ),
    Host(
        "graviton3",
        "An AWS c7g.4xlarge: Arm's Neoverse V1, no siblings. The kernel offers huge pages of 64 KiB, always.",
        chips.GRAVITON3,
        nodes=((0, 16, 32),),
        threads=1,
        kernel="6.8.0-1021-aws",
        small_thp={64: "always"},
        glibc="2.39",
        libc="/usr/lib/aarch64-linux-gnu/libc.so.6",
        files=root_group("0-15"),
        libraries=("/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",),
    ),
    Host(
        "hpc-nfs",
        "A Slurm job with 32 CPUs of a node with two sockets of Zen 2, groups of version 1, the memory\n"
        "limit at the job and not at its step. Home with the cache of models is on NFS, /var/tmp on a\n"
        "local disk.",
        chips.EPYC_7702,
        nodes=((0, 64, 256), (1, 64, 256)),
        threads=1,
        distances=(12, 32),
        kernel="5.14.0-427.el9.x86_64",
        affinity="32-63",
        locked="unlimited",
        governor="performance",
        thp="always",
        glibc="2.34",
        libc="/usr/lib64/libc.so.6",
        probes={"hub_cache_in_use": "yes", "user": "1000"},
        mounts=(
            "22 1 0:24 / / rw,relatime shared:1 - tmpfs rootfs rw",
            "57 22 8:3 / /var rw,relatime shared:30 - xfs /dev/sda3 rw,attr2",
            "58 22 0:51 / /home rw,relatime shared:31 - nfs4 storage:/export/home rw,vers=4.2,hard",
            *cgroup1("/"),
        ),
        files=own_group1(f"{JOB}/step_0")
        | quota1(f"{JOB}/step_0", -1)
        | {f"/sys/fs/cgroup/cpuset{JOB}/step_0/cpuset.effective_cpus": "32-63"}
        | {f"/sys/fs/cgroup/memory{JOB}/memory.limit_in_bytes": "137438953472"}
        | {f"/sys/fs/cgroup/memory{JOB}/step_0/memory.limit_in_bytes": "9223372036854771712"},
    ),
    Host(
        "gpu-tensorflow",
        "A server with NVIDIA's driver and with TensorFlow beside PyTorch, on Zen 3.",
        chips.EPYC_7763,
        nodes=((0, 32, 256),),
        files=root_group("0-63")
        | {"/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.127.05"},
        probes={"tensorflow": "yes"},
    ),
)


def text_of(host: Host) -> str:
    """The captured host: of its files those that the reader reads, and of them what it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder, "full.txt")
        full.write_text("".join(f"==> {path} <==\n{text}\n" for path, text in files_of(host).items()))
        tree = Tree(full)
        hfaccel.host.read_tree(tree)
    return f"{host.about.strip()}\n\n{capture(tree)}"


def main() -> None:
    for host in HOSTS:
        Path(__file__).with_name(f"{host.name}.txt").write_text(text_of(host))


if __name__ == "__main__":
    main()
