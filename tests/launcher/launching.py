"""Starting programs with and without hfaccel-run, as the tests of this folder do it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest

from hfaccel.host import read_host
from hfaccel.plan import cpu_budget

RUN = str(Path(sys.executable).with_name("hfaccel-run"))
LIMIT = 60  # seconds: a hanging program fails its test instead of stopping the whole run
# What hfaccel-run sets for the program and its children on purpose.
INHERITED = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "TBB_ENABLE_SANITIZERS", "HFACCEL_RUN"}
# Variables of whoever runs the tests that would decide something here.
DECIDING = (
    *("PYTHON", "OMP_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MIMALLOC_", "GLIBC_", "HFACCEL_"),
    *("LOCAL_RANK", "LOCAL_WORLD_SIZE", "COLUMNS"),
)

FACTS = read_host()
CPUS = sorted(os.sched_getaffinity(0))
CORES = cpu_budget(FACTS).cores  # one CPU of each
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="one core is all that may be used here")
needs_two_threads = pytest.mark.skipif(cpu_budget(FACTS).threads < 2, reason="one thread is all that fits")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do this")


def environment(**extra: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DECIDING)}
    return {**kept, **extra}


def start(command, *, env=None, **options) -> subprocess.CompletedProcess[bytes]:
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        list(command), capture_output=True, timeout=LIMIT, env=environment(**(env or {})), **options
    )


def plain(*program, **options) -> subprocess.CompletedProcess[bytes]:
    return start([sys.executable, *program], **options)


def launched(*program, **options) -> subprocess.CompletedProcess[bytes]:
    return start([RUN, *program], **options)


def same(*program, **options) -> subprocess.CompletedProcess[bytes]:
    """Run the program both ways; exit code and every byte of output must agree."""
    expected, got = plain(*program, **options), launched(*program, **options)
    assert got.stdout == expected.stdout
    assert got.stderr == expected.stderr
    assert got.returncode == expected.returncode
    return got


def refused(*program, **options) -> str:
    """The one line with which hfaccel-run refuses to start something."""
    return one_line(launched(*program, **options))


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert done.stdout == b""
    assert text.startswith("hfaccel: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text


def patched(patch: str) -> list[str]:
    """The command hfaccel-run with some of its own Python changed before it runs."""
    code = f"import sys\n{patch}\nfrom hfaccel.commands.run import main\nsys.exit(main())"
    return [sys.executable, "-P", "-c", code]


# In patched(): this machine, but its first two CPUs are one core.
SIBLINGS = """
import os
from hfaccel.launcher.prepare import prepare
module = sys.modules["hfaccel.launcher.prepare"]
facts = module.read_host()
first, second = sorted(os.sched_getaffinity(0))[:2]
cpus = tuple(c._replace(core=first) if c.cpu == second else c for c in facts.topology.cpus)
cpus = tuple(c for c in cpus if c.cpu in (first, second))
limits = facts.limits._replace(affinity=(first, second), cpu_quota=None)
facts = facts._replace(topology=facts.topology._replace(cpus=cpus), limits=limits)
module.read_host = lambda: facts
"""


# Several processes


def until(condition, what: str) -> None:
    """Wait for what must happen sooner or later; on a busy machine that may take a while."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


class Family:
    """A program and everything that it starts, found by a mark in their environment."""

    def __init__(self) -> None:
        self.mark = f"FAMILY_{uuid.uuid4().hex}"
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, *command, env=None, **options) -> subprocess.Popen[bytes]:
        options.setdefault("stdin", subprocess.DEVNULL)
        options.setdefault("stdout", subprocess.PIPE)
        options.setdefault("stderr", subprocess.PIPE)
        variables = environment(**{**(env or {}), self.mark: "1"})
        self.started.append(subprocess.Popen(list(command), env=variables, **options))
        return self.started[-1]

    def run(self, *command, **options) -> subprocess.CompletedProcess[bytes]:
        process = self.start(*command, **options)
        output, errors = process.communicate(timeout=LIMIT)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)

    def members(self) -> set[int]:
        """PIDs of those alive: a process that has ended has no environment any more."""
        found = set()
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.add(int(folder.name))
            except OSError:
                continue
        return found

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *error: object) -> None:
        for pid in self.members():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.communicate(timeout=LIMIT)


def read_lines(stream, *wanted: bytes) -> list[bytes]:
    """Read lines until all of these have come, in any order."""
    lines: list[bytes] = []
    while not set(wanted) <= set(lines):
        line = stream.readline()
        assert line, f"ended before {set(wanted) - set(lines)}, after {lines}"
        lines.append(line)
    return lines


def status(pid: int, field: str) -> str:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.partition(":")[2].strip()
    raise AssertionError(f"/proc/{pid}/status has no {field}")
