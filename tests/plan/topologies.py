"""Hosts that hypothesis makes up, and what must hold for the places of instances on any host."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st

from hfaccel.host import (
    HostFacts,
    Library,
    Limits,
    LogicalCpu,
    MemoryFacts,
    Node,
    Processor,
    Software,
    Topology,
)
from hfaccel.plan import Request

GIB = 1 << 30
SOFTWARE = Software(False, False, "/home/ada/.cache/huggingface/hub", "ext4", False, False, "")
INTEL = (Library("intel", "/lib/libiomp5.so"),)
PROCESSOR = Processor("x86_64", "GenuineIntel", "", "", 6, 143, 8, "", ("avx2",), ())


def make_topology(nodes=(4,), smt=1, split=True, nodes_per_socket=1, small=(), memory=None):
    """`nodes` has the number of cores of each node, 0 for one that has only memory.

    Siblings are numbered next to each other, or (split) after all the cores of the host. `small` holds
    the indexes of efficiency cores, `memory` the bytes of each node.
    """
    homes = [node for node, count in enumerate(nodes) for _ in range(count)]
    cpus = []
    for core, node in enumerate(homes):
        for thread in range(smt):
            cpu = core + thread * len(homes) if split else core * smt + thread
            package = node // nodes_per_socket
            # core ids repeat between sockets, as they do on real hosts
            core_id = core - homes.index(min(home for home in homes if home // nodes_per_socket == package))
            cpus.append(LogicalCpu(cpu, core_id, package, node, core in small))
    cpus.sort(key=lambda entry: entry.cpu)
    memory = memory or [GIB] * len(nodes)
    rows = [
        Node(
            number,
            tuple(entry.cpu for entry in cpus if entry.node == number),
            memory[number],
            tuple(10 if other == number else 20 + abs(other - number) for other in range(len(nodes))),
            (),
        )
        for number in range(len(nodes))
    ]
    return Topology(tuple(cpus), nodes=tuple(rows))


def facts_of(topology, mask=None, quota=None, **others):
    online = tuple(entry.cpu for entry in topology.cpus)
    facts = HostFacts(
        kernel="6.8.0",
        processor=PROCESSOR,
        topology=topology,
        limits=Limits(online if mask is None else mask, quota, None),
        memory=MemoryFacts(64 * GIB, "madvise", "madvise", False),
        allocators=(),
        openmp=(),
        libc="glibc",
        libc_version="2.39",
        mapped=(),
        software=SOFTWARE,
        problems=(),
    )
    return facts._replace(**others)


shapes = st.tuples(st.integers(1, 4), st.booleans(), st.integers(1, 2), st.integers(0, 15))


@st.composite
def topologies(draw):
    nodes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any))
    smt, split, nodes_per_socket, with_memory = draw(shapes)
    small = draw(st.just(()) | st.sets(st.integers(0, sum(nodes) - 1)))
    memory = [GIB * (with_memory >> node & 1) for node in range(len(nodes))]
    return make_topology(nodes, smt, split, nodes_per_socket, small, memory)


# What does not concern CPUs, a few dozen kinds of it: each draw costs time.
SURROUNDINGS = [
    {
        "processor": PROCESSOR._replace(vendor=vendor),
        "memory": MemoryFacts(total, thp, "", disabled),
        "allocators": tuple(Library(kind, f"/lib/lib{kind}.so") for kind in kinds),
        "openmp": openmp,
        "libc": libc,
        "mapped": mapped,
        "software": SOFTWARE._replace(
            tensorflow=tensorflow,
            cuda=not tensorflow,
            hub_cache_remote=bool(total),
            hub_cache_in_use=disabled,
            local_cache=local,
        ),
    }
    for vendor, openmp in (
        ("GenuineIntel", INTEL),
        ("GenuineIntel", ()),
        ("AuthenticAMD", INTEL),
        ("ARM", ()),
    )
    for total, thp, disabled in ((0, "absent", False), (GIB, "madvise", True), (64 * GIB, "always", False))
    for kinds, libc, mapped in (
        (("mimalloc", "jemalloc"), "glibc", ("/lib/libc.so.6",)),
        ((), "glibc", ("/lib/libjemalloc.so.2",)),
        (("tcmalloc",), "musl", ()),
        ((), "unknown", ()),
    )
    for tensorflow, local in ((True, ""), (False, "/var/tmp/huggingface-1000"))
]


@st.composite
def hosts(draw):
    topology = draw(topologies())
    online = [entry.cpu for entry in topology.cpus]
    mask = draw(st.just(set(online)) | st.sets(st.sampled_from(online), min_size=1))
    quota = draw(st.none() | st.floats(0.01, 20))
    return facts_of(topology, tuple(sorted(mask)), quota, **draw(st.sampled_from(SURROUNDINGS)))


scopes = st.sampled_from(["launch", "process"])
few = settings(max_examples=40)  # for what hardly depends on the host


# What places must be, told without the code that makes them

ANYWHERE = Request()


def cores_touched(facts, cpus):
    """(package, core) of each CPU, one by one: two equal entries are siblings."""
    known = {entry.cpu: (entry.package, entry.core) for entry in facts.topology.cpus}
    return [known.get(cpu, (-1, cpu)) for cpu in cpus]


def usable(facts, request=ANYWHERE):
    """core -> its CPUs that may be used, as the request and the mask allow."""
    entries = {entry.cpu: entry for entry in facts.topology.cpus}
    cpus = facts.limits.affinity if request.cpus is None else request.cpus
    if request.nodes is not None:
        cpus = [cpu for cpu in cpus if entries[cpu].node in request.nodes]
    cores = {}
    for cpu in sorted(cpus):
        (core,) = cores_touched(facts, [cpu])
        cores.setdefault(core, []).append(cpu)
    if request.cpus is None:
        large = {core: cpus for core, cpus in cores.items() if not entries[cpus[0]].efficient}
        cores = large or cores
    return cores


def cores_on_nodes(facts, request):
    """How many usable cores each node has."""
    sizes = {}
    for cpus in usable(facts, request).values():
        (node,) = facts.topology.nodes_of((cpus[0],)) or (0,)
        sizes[node] = sizes.get(node, 0) + 1
    return sizes


def check_slots(facts, request, slots):
    """Everything that holds for the places of instances, whatever the host and the request."""
    available = usable(facts, request)
    taken = [set(cores_touched(facts, slot.cpus)) for slot in slots]
    assert slots
    assert sum(map(len, taken)) == len(set().union(*taken)), "two instances share a core"
    for number, (slot, cores) in enumerate(zip(slots, taken, strict=True)):
        assert (slot.instance, slot.instances, slot.asked) == (number, len(slots), True)
        assert list(slot.cpus) == sorted(set(slot.cpus))
        assert slot.nodes == (facts.topology.nodes_of(slot.cpus) or (0,))
        assert slot.reason and "\n" not in slot.reason
        assert cores and cores <= set(available)
        _check_siblings(available, request, slot, cores)
        _check_threads(facts, request, slot, cores)
    _check_sizes(facts, request, slots, taken)


def _check_siblings(available, request, slot, cores):
    whole = request.siblings or request.cpus is not None
    expected = {cpu for core in cores for cpu in (available[core] if whole else available[core][:1])}
    assert set(slot.cpus) == expected


def _check_threads(facts, request, slot, cores):
    wanted = len(slot.cpus) if request.siblings else len(cores)
    quota = facts.limits.cpu_quota
    allowed = wanted if quota is None else max(1, math.floor(quota / slot.instances))
    assert slot.threads == min(wanted, allowed)
    assert ("quota" in slot.reason) == (slot.threads < wanted)


def _check_sizes(facts, request, slots, taken):
    on_nodes = cores_on_nodes(facts, request)
    if request.mode == "throughput" and (request.instances, request.cores_per_instance) == (None, None):
        assert sorted(
            (slot.nodes[0], len(cores)) for slot, cores in zip(slots, taken, strict=True)
        ) == sorted(on_nodes.items())
        return
    (size,) = {len(cores) for cores in taken}
    assert request.cores_per_instance in (None, size)
    assert request.instances in (None, len(slots))
    alone = sum(len(slot.nodes) == 1 for slot in slots)
    room = sum(count // size for count in on_nodes.values())
    assert alone >= min(len(slots), room)
    allowed = math.floor(min(sum(on_nodes.values()), facts.limits.cpu_quota or math.inf)) or 1
    if request.instances is None and (request.cores_per_instance or request.mode):
        # as many as there is room for, and no more than the quota lets compute at a time
        assert len(slots) == min(room or sum(on_nodes.values()) // size, max(1, allowed // size))
    if request.mode == "latency" and request.cores_per_instance is None:
        assert alone == len(slots)
        assert request.instances is not None or size == min(4, max(on_nodes.values()), allowed)
