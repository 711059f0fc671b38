"""hfaccel._arena through Python: arguments, errors, lifetime, and a leak test for each function."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import signal
import subprocess
import sys
import threading

import pytest
import torch

from hfaccel import _arena

MIB = 1 << 20


def resident() -> int:
    """Bytes of this process that are present in memory."""
    with open("/proc/self/statm") as file:  # noqa: PTH123 (Path.open allocates more)
        return int(file.read().split()[1]) * resource.getpagesize()


NAMES = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


class MallocInfo(ctypes.Structure):
    """struct mallinfo2 of malloc.h."""

    _fields_ = [(name, ctypes.c_size_t) for name in NAMES]


mallinfo = ctypes.CDLL(None).mallinfo2  # glibc 2.33
mallinfo.restype = MallocInfo


def allocated() -> int:
    """Bytes that malloc has given out. Memory that is present would count what khugepaged fills up, too."""
    info = mallinfo()
    return info.uordblks + info.hblkhd


def mappings() -> int:
    with open("/proc/self/maps") as file:  # noqa: PTH123
        return sum(1 for _ in file)


def test_region_is_aligned_and_rounded_up():
    region = _arena.Region(3 * MIB)
    assert region.address % _arena.HUGE_PAGE_SIZE == 0
    assert len(region) == 4 * MIB
    assert memoryview(region).nbytes == 4 * MIB


def test_region_is_writable_and_zero():
    view = memoryview(_arena.Region(1))
    assert view[0] == 0
    view[12345] = 7
    assert view[12345] == 7


@pytest.mark.parametrize("size", [0, -1, 1 << 63, 1 << 64, 1 << 70])
def test_absurd_sizes_name_the_rule_and_the_value(size):
    with pytest.raises(ValueError, match=r"must hold, but got"):
        _arena.Region(size)


@pytest.mark.parametrize("size", ["1", 1.5, None])
def test_sizes_are_integers(size):
    with pytest.raises(TypeError):
        _arena.Region(size)


def test_no_memory_is_an_oserror_with_call_size_and_errno():
    with pytest.raises(OSError, match=r"mmap of \d+ bytes at .*: Cannot allocate memory") as caught:
        _arena.Region(1 << 62)
    assert caught.value.errno == 12


def test_address_space_limit_is_an_oserror():
    """RLIMIT_AS in a process of its own: the limit cannot be raised again."""
    code = (
        "import resource; from hfaccel import _arena\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "try: _arena.Region(2 << 30)\n"
        "except OSError as error: print(error.errno)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "12"


def test_populate_makes_pages_present():
    region = _arena.Region(8 * MIB)
    assert _arena.smaps(region.address, len(region))[0] == 0
    region.populate(0, len(region))
    assert _arena.smaps(region.address, len(region))[0] == len(region)


def test_populate_leaves_no_page_fault():
    region = _arena.Region(8 * MIB)
    region.populate(0, len(region))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    memoryview(region)[::4096] = bytes(len(region) // 4096)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 10


@pytest.mark.parametrize(("offset", "size"), [(0, 2 * MIB + 1), (2 * MIB + 1, 0), (2 * MIB, 1)])
def test_populate_stays_inside(offset, size):
    with pytest.raises(ValueError, match=r"offset \+ size <= 2097152` must hold, but got"):
        _arena.Region(MIB).populate(offset, size)


def test_huge_pages_are_given_where_the_kernel_has_them():
    mode = open("/sys/kernel/mm/transparent_hugepage/enabled").read()  # noqa: PTH123, SIM115
    if "[never]" in mode:
        pytest.skip("transparent huge pages are off on this machine")
    region = _arena.Region(16 * MIB)
    assert region.refused == ()
    region.populate(0, len(region))
    assert _arena.smaps(region.address, len(region))[1] == len(region)
    small = _arena.Region(16 * MIB, pages="default")
    small.populate(0, len(small))
    if "[madvise]" in mode:
        assert _arena.smaps(small.address, len(small))[1] == 0


def test_neighbouring_regions_are_counted_apart():
    """The kernel merges equal neighbours into one line of smaps; names of their own keep them apart."""
    regions = [_arena.Region(2 * MIB, pages="default") for _ in range(4)]
    regions[1].populate(0, 2 * MIB)
    present = [_arena.smaps(region.address, len(region))[0] for region in regions]
    assert present == [0, 2 * MIB, 0, 0]


def test_a_tensor_keeps_its_region():
    tensor = torch.frombuffer(_arena.Region(4 * MIB), dtype=torch.float32)
    gc.collect()
    tensor.fill_(3)
    assert tensor.sum() == 3 * MIB


def test_malloc_owner_names_a_library():
    assert os.path.basename(_arena.malloc_owner()).startswith("lib")  # noqa: PTH119


def test_mallopt_accepts_and_refuses():
    assert _arena.mallopt(-1, 64 * MIB) is True  # M_TRIM_THRESHOLD
    assert _arena.mallopt(123456, 1) in (True, False)  # glibc ignores unknown options
    with pytest.raises(TypeError):
        _arena.mallopt("trim", 1)


# Memory policy


@pytest.fixture
def policy():
    """The memory policy is put back afterwards; nothing is tested where there is none (gVisor, seccomp)."""
    try:
        before = _arena.memory_policy()
        _arena.set_memory_policy("preferred", (0,))
    except OSError as error:
        pytest.skip(f"no memory policies here: {error}")
    yield
    _arena.set_memory_policy(*before)


@pytest.mark.parametrize("mode", ["preferred", "bind", "interleave"])
def test_a_memory_policy_is_read_back(policy, mode):
    assert _arena.set_memory_policy(mode, (0,)) is None
    assert _arena.memory_policy() == (mode, (0,))
    use_region()  # pages come from there


@pytest.mark.parametrize("nodes", [(), (0,)])
def test_the_default_policy_has_no_nodes(policy, nodes):
    _arena.set_memory_policy("default", nodes)
    assert _arena.memory_policy() == ("default", ())


def test_a_policy_is_the_calling_threads(policy):
    seen = []

    def other():
        seen.append(_arena.memory_policy())  # inherited
        _arena.set_memory_policy("default", ())
        seen.append(_arena.memory_policy())

    _arena.set_memory_policy("interleave", (0,))
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [("interleave", (0,)), ("default", ())]
    assert _arena.memory_policy() == ("interleave", (0,))


def test_children_inherit_the_policy(policy):
    _arena.set_memory_policy("interleave", (0,))
    code = "from hfaccel import _arena; print(_arena.memory_policy())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "('interleave', (0,))"


def test_a_policy_that_python_cannot_name_is_other(policy):
    _arena.set_memory_policy("preferred", ())  # the kernel calls that MPOL_LOCAL
    assert _arena.memory_policy() == ("other", ())


@pytest.mark.parametrize(
    ("mode", "nodes"), [("bind", (1023,)), ("preferred", (1022,)), ("interleave", ()), ("bind", ())]
)
def test_a_policy_that_the_kernel_refuses_is_an_oserror_and_changes_nothing(policy, mode, nodes):
    with pytest.raises(OSError, match=r"^\[Errno 22\] set_mempolicy: Invalid argument$") as caught:
        _arena.set_memory_policy(mode, nodes)
    assert caught.value.errno == 22
    assert _arena.memory_policy() == ("preferred", (0,))


@pytest.mark.parametrize("mode", ["", "local", "Bind", "default ", "x" * 1000])
def test_an_unknown_mode_names_the_known_ones(mode):
    with pytest.raises(
        ValueError, match="must be default, preferred, bind or interleave, but got '"
    ) as raised:
        _arena.set_memory_policy(mode, (0,))
    assert mode in str(raised.value)


@pytest.mark.parametrize(
    ("node", "rule"),
    [
        (1024, "`node < 1024` must hold, but got 1024"),
        ((1 << 64) - 1, "`node < 1024` must hold, but got 18446744073709551615"),
        (-1, r"`0 <= node < 2\*\*64` must hold, but got -1"),
        (1 << 64, r"`0 <= node < 2\*\*64` must hold, but got 18446744073709551616"),
    ],
)
def test_node_numbers_out_of_range_name_the_rule_and_the_value(node, rule):
    with pytest.raises(ValueError, match=rule):
        _arena.set_memory_policy("bind", (0, node))


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("bind",),
        ("bind", [0]),
        ("bind", 0),
        (1, (0,)),
        (b"bind", (0,)),
        ("bind", ("0",)),
        ("bind", (0.0,)),
    ],
)
def test_a_policy_takes_a_name_and_a_tuple_of_integers(arguments):
    with pytest.raises(TypeError):
        _arena.set_memory_policy(*arguments)


# Register sets


def state_or_skip(read):
    try:
        return read()
    except OSError as error:
        pytest.skip(f"not readable here: {error}")


def test_the_state_that_the_kernel_saves_fits_the_flags_that_it_lists():
    saved = state_or_skip(_arena.saved_state)
    with open("/proc/cpuinfo") as file:  # noqa: PTH123
        flags = next(line for line in file if line.startswith("flags")).split()
    assert saved & 0b11 == 0b11  # x87 and SSE
    assert ("avx" in flags) <= (saved & 0b110 == 0b110)
    assert ("avx512f" in flags) <= (saved & 0b1110_0110 == 0b1110_0110)


def test_what_may_be_asked_for_has_what_every_program_has():
    assert state_or_skip(_arena.requestable_state) & 0b11 == 0b11


@pytest.mark.parametrize("name", ["saved_state", "requestable_state", "memory_policy", "malloc_owner"])
def test_questions_take_no_arguments(name):
    with pytest.raises(TypeError):
        getattr(_arena, name)(1)


# The end of the parent

ORPHAN = """
import os, signal, sys, time
from hfaccel import _arena
child = os.fork()
if child == 0:
    _arena.end_with_parent(getattr(signal, sys.argv[1]))
    if sys.argv[1] == "SIGUSR1":
        def leave(*given):
            os.write(1, b"asked to leave")
            os._exit(0)
        signal.signal(signal.SIGUSR1, leave)
    os.write(1, b"ready ")
    time.sleep(60)
    os._exit(1)
time.sleep(60)
"""


@pytest.mark.parametrize(("number", "said"), [("SIGKILL", b""), ("SIGUSR1", b"asked to leave")])
def test_a_child_gets_the_signal_when_its_parent_is_killed(number, said):
    """Its end closes the pipe that it alone still holds: no waiting for a time."""
    with subprocess.Popen([sys.executable, "-c", ORPHAN, number], stdout=subprocess.PIPE) as parent:
        assert parent.stdout.read(6) == b"ready "
        parent.kill()
        assert parent.stdout.read() == said
    assert parent.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [-1, 65, 1000])
def test_what_is_no_signal_is_an_oserror(number):
    with pytest.raises(OSError, match=r"prctl\(PR_SET_PDEATHSIG\): Invalid argument") as caught:
        _arena.end_with_parent(number)
    assert caught.value.errno == 22


@pytest.mark.parametrize("arguments", [(), ("SIGTERM",), (1.5,), (15, 0)])
def test_a_signal_is_one_integer(arguments):
    with pytest.raises(TypeError):
        _arena.end_with_parent(*arguments)


# Huge pages of memory that others own, and the heap


def test_memory_that_is_not_there_cannot_be_made_huge():
    assert _arena.make_huge(1 << 40, 4 * MIB, False) == errno.ENOMEM
    assert _arena.make_huge(4096, 0, True) == 0  # no whole page: nothing to do
    with pytest.raises(ValueError, match="must hold"):
        _arena.make_huge((1 << 64) - 1, 4096, False)


HEAP = """
from hfaccel import _arena
import ctypes
MIB = 1 << 20
for option, value in ((-8, 1), (-1, 400 * MIB), (-3, 300 * MIB)):
    assert _arena.mallopt(option, value)
address = _arena.reserve_heap(256 * MIB)
_arena.mallopt(-2, 256 * MIB)
def present():
    return _arena.smaps(address, 254 * MIB)[:2]  # all of it: a part would be an estimate
assert present()[0] < 4 * MIB, "reserving touches nothing"
malloc, free, libc = ctypes.CDLL(None).malloc, ctypes.CDLL(None).free, ctypes.CDLL(None)
malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
block = malloc(100 * MIB)
assert address - 4 * MIB <= block < address + 200 * MIB, "what comes next lies in it"
ctypes.memset(block, 1, 100 * MIB)
resident, huge = present()
free(block)
assert present()[0] >= 96 * MIB, "and is kept when it is freed"
assert _arena.trim_heap() and present()[0] < 8 * MIB, "until it is given back"
block = malloc(100 * MIB)
ctypes.memset(block, 1, 100 * MIB)
print(huge // MIB, present()[1] // MIB)
"""


def test_the_heap_begins_with_a_reserve_on_huge_pages():
    variables = {"PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", HEAP]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    first, again = map(int, done.stdout.split())
    if "[never]" not in open("/sys/kernel/mm/transparent_hugepage/enabled").read():  # noqa: PTH123, SIM115
        assert first >= 96
        assert again >= 96  # also after it was given back once


@pytest.mark.parametrize("size", [0, 4096, (1 << 63), (1 << 64) - 1])
def test_a_reserve_of_an_absurd_size_is_refused(size):
    with pytest.raises(OSError, match="reserving the heap"):
        _arena.reserve_heap(size)


# Leaks


def use_region():
    region = _arena.Region(MIB)
    region.populate(0, MIB)


LEAK_TESTS = {
    "Region": use_region,
    "smaps": lambda: _arena.smaps(4096, 4096),
    "malloc_owner": _arena.malloc_owner,
    "make_huge": lambda: _arena.make_huge(1 << 40, 4 * MIB, False),
    "reserve_heap": lambda: quietly(_arena.reserve_heap, 1),
    "trim_heap": _arena.trim_heap,
    "mallopt": lambda: _arena.mallopt(-1, 64 * MIB),
    "set_memory_policy": lambda: quietly(_arena.set_memory_policy, "default", (0, 1023)),
    "memory_policy": lambda: quietly(_arena.memory_policy),
    "saved_state": lambda: quietly(_arena.saved_state),
    "requestable_state": lambda: quietly(_arena.requestable_state),
    "end_with_parent": lambda: _arena.end_with_parent(0),
    "count_event": lambda: quietly(count_page_faults),
}


def count_page_faults():
    os.close(_arena.count_event(1, 2))  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_PAGE_FAULTS


def quietly(function, *arguments):
    """What a kernel or processor refuses must not leak either."""
    try:
        function(*arguments)
    except OSError as error:
        assert error.errno


def test_every_function_has_a_leak_test():
    public = {name for name in vars(_arena) if callable(getattr(_arena, name)) and not name.startswith("_")}
    assert public == set(LEAK_TESTS)


@pytest.mark.parametrize("name", LEAK_TESTS)
def test_nothing_leaks(name):
    # What leaks leaks every time; other things in this process may grow or go once.
    growths = [growth(LEAK_TESTS[name]) for _ in range(3)]
    # 500 leaked regions are 500 lines, 500 leaked strings of a path about 40 KiB.
    malloced, lines, blocks = (min(each) for each in zip(*growths, strict=True))
    assert malloced < 20_000
    assert lines < 10
    assert blocks < 200  # 500 leaked objects


def growth(call):
    """Bytes of malloc, lines of maps, and Python's blocks that 500 calls add."""
    for _ in range(50):
        call()
    gc.collect()
    before, lines, blocks = allocated(), mappings(), sys.getallocatedblocks()
    for _ in range(500):
        call()
    gc.collect()
    return allocated() - before, mappings() - lines, sys.getallocatedblocks() - blocks


@pytest.mark.parametrize("call", [lambda: _arena.Region(0), lambda: _arena.Region(1 << 62)])
def test_failures_leak_nothing(call):
    lines = mappings()
    for _ in range(200):
        with pytest.raises((ValueError, OSError)):
            call()
    assert mappings() - lines < 10


def refused(error, function, *arguments):
    def call():
        with pytest.raises(error):
            function(*arguments)

    return call


@pytest.mark.parametrize(
    "call",
    [
        refused(OSError, _arena.set_memory_policy, "bind", (1023,)),
        refused(ValueError, _arena.set_memory_policy, "nonsense", (0,)),
        refused(ValueError, _arena.set_memory_policy, "bind", (0, 1024)),
        refused(ValueError, _arena.set_memory_policy, "bind", (1 << 70,)),
        refused(TypeError, _arena.set_memory_policy, "bind", ("0",)),
        refused(OSError, _arena.end_with_parent, 1000),
        refused(OSError, _arena.count_event, 1, 1 << 60),
        refused(TypeError, _arena.count_event, "1", 2),
    ],
)
def test_errors_leak_nothing(call):
    for _ in range(20):
        call()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(500):
        call()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200
