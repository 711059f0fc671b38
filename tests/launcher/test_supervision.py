"""No process is left behind, and signals arrive: instances while they run and when they are stopped."""

from __future__ import annotations

import signal
import sys

import pytest
from launching import (
    FACTS,
    LIMIT,
    RUN,
    Family,
    needs_two_cores,
    one_line,
    patched,
    read_lines,
    start,
    status,
    until,
)

from hfaccel import native

pytestmark = needs_two_cores
TWO = [RUN, "--ninstances", "2"]
SHORT_GRACE = "from hfaccel.launcher import instances\ninstances.GRACE = 0.3"


@pytest.fixture
def family():
    with Family() as members:
        yield members


def running(family, *command, **options):
    """A launcher whose two instances have said that they are ready."""
    process = family.start(*command, **options)
    read_lines(process.stdout, b"[0] ready\n", b"[1] ready\n")
    return process


def gone(family, what):
    until(lambda: not family.members(), what)


# Signals


HANDLES = """
import os, signal, sys, time
def handler(number, frame):
    os.write(1, b"got " + signal.Signals(number).name.encode() + b"\\n")
    sys.exit(0)
signal.signal(signal.Signals[sys.argv[1]], handler)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.05)  # a signal before signal.pause() would be slept through
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_reaches_the_handlers_of_all(family, name):
    process = running(family, *TWO, "-c", HANDLES, name)
    process.send_signal(signal.Signals[name])
    output, errors = process.communicate(timeout=LIMIT)
    assert sorted(output.decode().splitlines()) == [f"[0] got {name}", f"[1] got {name}"]
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_a_signal_that_nobody_handles_ends_all(family, name):
    process = running(family, *TWO, "--no-python", "sh", "-c", "echo ready; exec sleep 1000")
    process.send_signal(signal.Signals[name])
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.Signals[name]
    assert name in errors.decode() and "Traceback" not in errors.decode()
    assert family.members() == set()


FAMILY_OF_TWO = """
sh -c 'trap "echo its child; exit 0" USR1; echo ready; while :; do sleep 0.05; done' &
trap 'wait; echo the shell; exit 0' USR1
while :; do sleep 0.05; done
"""


def test_a_signal_reaches_what_an_instance_has_started(family):
    """As Ctrl-C in a terminal does: the whole group gets it."""
    process = running(family, *TWO, "--no-python", "sh", "-c", FAMILY_OF_TWO)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=LIMIT)
    assert sorted(output.decode().splitlines()) == [
        f"[{number}] {who}" for number in range(2) for who in ("its child", "the shell")
    ]


def test_what_the_launcher_ignores_the_instances_ignore(family):
    """As under nohup: the programs must outlive the terminal."""
    code = "grep SigIgn /proc/self/status; echo ready; exec sleep 1000"
    shell = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *TWO, "--no-python", "sh", "-c", code]
    process = family.start(*shell)
    lines = read_lines(process.stdout, b"[0] ready\n", b"[1] ready\n")
    masks = [int(line.split()[-1], 16) for line in lines if b"SigIgn" in line]
    assert [mask & 1 for mask in masks] == [1, 1]
    assert int(status(process.pid, "SigIgn"), 16) & 1


def test_a_stopped_and_continued_launcher_goes_on(family):
    process = running(family, *TWO, "-c", HANDLES, "SIGCONT")
    process.send_signal(signal.SIGSTOP)
    until(lambda: "stopped" in status(process.pid, "State"), "it must stop")
    process.send_signal(signal.SIGCONT)
    output, _ = process.communicate(timeout=LIMIT)
    assert sorted(output.splitlines()) == [b"[0] got SIGCONT", b"[1] got SIGCONT"]


# What must not be left behind


IGNORES = "trap '' TERM; echo ready; while :; do sleep 0.05; done"


def test_one_that_ignores_the_request_to_end_is_ended(family):
    """The other one fails as soon as it is told that this one is ready."""
    code = f'if [ "$HFACCEL_INSTANCE" = 0 ]; then {IGNORES}; else read line <"$0"; exit 3; fi'
    fifo = "/dev/null"
    process = family.start(*patched(SHORT_GRACE), "--ninstances", "2", "--no-python", "sh", "-c", code, fifo)
    _, errors = process.communicate(timeout=LIMIT)
    assert process.returncode == 3
    assert errors == b"hfaccel-run: instance 1 ended with code 3; stopping the others\n"
    assert family.members() == set()


GRACES = """
from hfaccel.commands.run_options import parse
from hfaccel.launcher import instances, prepare
import atexit, time, types
_, settings, program = parse(["--no-bind", "--no-python", "sh", "-c", sys.argv[2]])
launch, = prepare(program, settings, {"PATH": "/usr/bin:/bin", sys.argv[1]: "1"})
class Clock:
    now = 0.0
    def monotonic(): return Clock.now
    def sleep(seconds):
        Clock.now += seconds
        time.sleep(0)
instances.time = Clock
failing = launch._replace(command=("/bin/sh", "-c", "exit 3"))
code = instances.run_instances([launch, launch, launch, failing])
print(code, Clock.now <= 1.5 * instances.GRACE)
"""


def test_all_of_them_get_the_same_time_to_end(family):
    """Ten seconds for all and not for each: a service with 32 instances must stop within a minute."""
    code = "import sys\n" + GRACES
    done = family.run(
        sys.executable, "-P", "-c", code, family.mark, "trap '' TERM; while :; do sleep 0.05; done"
    )
    assert done.stdout.splitlines()[-1] == b"3 True", done.stderr.decode()
    assert family.members() == set()


LEAVES = """
import subprocess, sys
subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.Popen(["sh", "-c", "sleep 1001"])
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_script_started_and_did_not_wait_for_ends_with_it(family, code):
    done = family.run(*TWO, "-c", LEAVES, str(code))
    assert done.returncode == code
    assert family.members() == set()


def test_what_it_left_and_what_ignores_signals_is_ended(family):
    code = "sh -c \"trap '' TERM; while :; do sleep 0.05; done\" & exit 0"
    done = family.run(*patched(SHORT_GRACE), "--ninstances", "2", "--no-python", "sh", "-c", code)
    assert done.returncode == 0
    assert family.members() == set()


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_instances_end_with_a_launcher_that_is_killed(family):
    process = running(family, *TWO, "--no-python", "sh", "-c", "echo ready; exec sleep 1000")
    process.kill()
    gone(family, "the kernel must end the instances")


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_python_instances_end_with_a_launcher_that_is_killed(family):
    process = running(family, *TWO, "-c", HANDLES, "SIGUSR1")
    process.kill()
    gone(family, "the kernel must end the instances")


SECOND_IS_BAD = """
from hfaccel.commands import guarded
from hfaccel.commands.run_options import parse
from hfaccel.launcher import prepare
from hfaccel.launcher.instances import run_instances
_, settings, program = parse(["--ninstances", "2", "--no-python", "sleep", "1000"])
first, second = prepare(program, settings, {"PATH": "/usr/bin:/bin", sys.argv[1]: "1"})
second = second._replace(command=("/no/such/program",))
sys.exit(guarded(lambda: run_instances([first, second])))
"""


def test_when_one_cannot_be_started_those_before_it_are_stopped(family):
    done = family.run(sys.executable, "-P", "-c", "import sys\n" + SECOND_IS_BAD, family.mark)
    assert "a program must be startable, but /no/such/program is not" in one_line(done)
    assert family.members() == set()


# The launcher itself


RESTORED = """
import os, sys
from hfaccel import native
from hfaccel.commands.run_options import parse
from hfaccel.launcher import prepare
from hfaccel.launcher.instances import FORWARDED, run_instances
import signal
def state():
    policy = native.arena.memory_policy() if native.arena else None
    return sorted(os.sched_getaffinity(0)), policy, [signal.getsignal(s) for s in FORWARDED]
policy = ["--memory-policy", sys.argv[1]] if native.arena else []
_, settings, program = parse(["--ninstances", "2", *policy, "--no-python", "true"])
before = state()
code = run_instances(prepare(program, settings, os.environ))
print(code, state() == before)
"""


def test_the_launcher_is_afterwards_what_it_was_before():
    done = start([sys.executable, "-P", "-c", RESTORED, f"interleave:{FACTS.topology.nodes[0].number}"])
    assert done.stdout == b"0 True\n", done.stderr.decode()
