"""Several instances, for real: their places, their output, how they end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from launching import (
    CORES,
    CPUS,
    FACTS,
    LIMIT,
    RUN,
    Family,
    launched,
    needs_two_cores,
    one_line,
    read_lines,
    refused,
    start,
    status,
)

from hfaccel.host import parse_number_list
from hfaccel.plan import Request, place


@pytest.fixture
def family():
    with Family() as members:
        yield members


def prefixed(output: bytes) -> dict[int, list[bytes]]:
    """The lines of each instance."""
    lines: dict[int, list[bytes]] = {}
    for line in output.splitlines(keepends=True):
        number, bracket, text = line.partition(b"] ")
        assert number.startswith(b"[") and bracket and text.endswith(b"\n"), line[:80]
        lines.setdefault(int(number[1:]), []).append(text)
    return lines


# Places


@needs_two_cores
def test_two_instances_run_on_cpus_of_their_own(family):
    process = family.start(RUN, "--ninstances", "2", "--no-python", "sh", "-c", "echo $$; exec sleep 1000")
    lines = {}
    while len(lines) < 2:
        prefix, pid = process.stdout.readline().split()
        lines[prefix] = int(pid)
    masks = [parse_number_list(status(lines[p], "Cpus_allowed_list")) for p in (b"[0]", b"[1]")]
    assert masks == [slot.cpus for slot in place(FACTS, Request(instances=2))]
    assert not set(masks[0]) & set(masks[1])
    assert sorted(parse_number_list(status(process.pid, "Cpus_allowed_list"))) == CPUS
    assert {status(pid, "PPid") for pid in lines.values()} == {str(process.pid)}


SHOW = "echo $HFACCEL_INSTANCE of $HFACCEL_INSTANCES, $OMP_NUM_THREADS, $LD_PRELOAD"


def shown(*options, **keywords):
    done = launched(*options, "--no-python", "sh", "-c", SHOW, **keywords)
    assert done.returncode == 0, done.stderr.decode()
    return {number: text.decode().strip() for number, (text,) in prefixed(done.stdout).items()}


@needs_two_cores
def test_an_instance_is_told_which_it_is():
    threads = [slot.threads for slot in place(FACTS, Request(instances=2))]
    got = shown("--ninstances", "2", "--memory-allocator", "default")
    assert got == {number: f"{number} of 2, {threads[number]}," for number in range(2)}


@needs_two_cores
def test_threads_of_each_may_be_asked_for():
    assert shown("--ninstances", "2", "--threads", "7", "--memory-allocator", "default")[1] == "1 of 2, 7,"


@needs_two_cores
def test_every_python_instance_runs_on_the_allocator():
    plan = json.loads(launched("--dry-run", "--json", "-c", "").stdout)["plan"]
    allocator = next(choice["value"] for choice in plan if choice["knob"] == "allocator")
    if not isinstance(allocator, dict):
        pytest.skip("no allocator is installed that could be preloaded")
    code = f"print({allocator['path']!r} in open('/proc/self/maps').read())"
    assert sorted(launched("--ninstances", "2", "-c", code).stdout.split(b"\n")) == [
        b"",
        b"[0] True",
        b"[1] True",
    ]


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_the_modes_start_what_fits_this_machine(mode):
    slots = place(FACTS, Request(mode=mode))
    done = launched(f"--{mode}-mode", "--no-python", "grep", "Cpus_allowed_list", "/proc/self/status")
    assert done.returncode == 0 and done.stderr == b""
    lines = [line.split()[-1].decode() for line in sorted(done.stdout.splitlines())]
    assert [parse_number_list(line) for line in lines] == [slot.cpus for slot in slots]
    assert done.stdout.startswith(b"[0] ") == (len(slots) > 1)


@needs_two_cores
def test_cores_of_each_give_as_many_instances_as_there_is_room_for():
    done = launched("--ncores-per-instance", "1", "--no-python", "sh", "-c", "echo $HFACCEL_INSTANCES")
    slots = place(FACTS, Request(cores_per_instance=1))
    assert len(slots) > 1
    assert sorted(done.stdout.splitlines()) == sorted(
        f"[{i}] {len(slots)}".encode() for i in range(len(slots))
    )


@needs_two_cores
@pytest.mark.parametrize("name", ["--instance-idx", "--rank", "--instance_idx"])
def test_one_of_them_is_started_in_place(family, name):
    code = "echo $$ $HFACCEL_INSTANCE of $HFACCEL_INSTANCES; grep Cpus_allowed_list /proc/self/status"
    process = family.start(RUN, "--ninstances", "2", name, "1", "--no-python", "sh", "-c", code)
    output, errors = process.communicate(timeout=LIMIT)
    slot = place(FACTS, Request(instances=2))[1]
    told, mask = output.decode().splitlines()
    assert errors == b"" and told == f"{process.pid} 1 of 2"
    assert parse_number_list(mask.split()[-1]) == slot.cpus


@needs_two_cores
def test_one_of_them_keeps_its_number_in_its_log(tmp_path):
    """For one container each, with a folder that they share."""
    options = ["--ninstances", "2", "--instance-idx", "1", "--log-path", str(tmp_path)]
    done = launched(*options, "--no-python", "echo", "a line")
    assert [path.name for path in tmp_path.iterdir()] == ["instance_1.log"]
    assert done.stdout == b"[1] a line\n"


def test_one_instance_is_told_so_too():
    """So that a program may count on the variables, whatever N is in `--ninstances N`."""
    done = launched(
        "--ninstances", "1", "--no-python", "sh", "-c", "echo $HFACCEL_INSTANCE of $HFACCEL_INSTANCES"
    )
    assert done.stdout == b"0 of 1\n"


def test_more_than_there_are_cores_are_refused(tmp_path):
    text = refused("--ninstances", str(len(CORES) + 1), "--no-python", "touch", str(tmp_path / "started"))
    assert f"{len(CORES) + 1} instances" in text and f"{len(CORES)} cores may be used" in text
    text = refused("--ncores-per-instance", str(len(CORES) + 1), "-c", "pass")
    assert f"an instance of {len(CORES) + 1} cores" in text
    text = refused("--ninstances", "2", "--ncores-per-instance", str(len(CORES)), "-c", "pass")
    assert f"2 instances of {len(CORES)} cores" in text
    assert not list(tmp_path.iterdir())


@needs_two_cores
def test_an_index_beyond_the_last_is_refused():
    text = refused("--ninstances", "2", "--instance-idx", "2", "-c", "pass")
    assert "`instance-idx < instances` must hold, but got 2 of 2" in text


@needs_two_cores
def test_an_instance_does_not_start_instances_again(family):
    inner = [RUN, "--ninstances", "2", "-c", "print('started')"]
    done = family.run(RUN, "--ninstances", "2", "--no-python", *inner)
    assert done.returncode == 2 and done.stdout == b""
    lines = [line for line in done.stderr.decode().splitlines() if line.startswith("[")]
    assert lines and all("] hfaccel: " in line and "must" in line for line in lines)
    text = refused(*inner[1:], env={"HFACCEL_INSTANCES": "2"})
    assert "must not start instances again, but HFACCEL_INSTANCES=2 is set" in text


@needs_two_cores
def test_an_instance_may_start_a_single_program():
    done = launched(
        "--ninstances", "2", "--no-python", RUN, "-c", "import os; print(len(os.sched_getaffinity(0)))"
    )
    sizes = [len(slot.cpus) for slot in place(FACTS, Request(instances=2))]
    assert done.returncode == 0, done.stderr.decode()
    assert sorted(done.stdout.decode().splitlines()) == [f"[{i}] {size}" for i, size in enumerate(sizes)]


@needs_two_cores
def test_dry_run_and_verbose_describe_each(tmp_path):
    options = ["--ninstances", "2", "--log-path", str(tmp_path / "logs")]
    done = launched("--dry-run", *options, "-c", "pass")
    assert done.returncode == 0 and done.stderr == b""
    assert b"plan of instance 0" in done.stdout and b"plan of instance 1" in done.stdout
    described = json.loads(launched("--dry-run", "--json", *options, "-c", "pass").stdout)["instances"]
    assert [d["environment"]["HFACCEL_INSTANCE"] for d in described] == ["0", "1"]
    assert not (tmp_path / "logs").exists()
    done = launched("--verbose", *options, "-c", "print('ran')")
    assert b"plan of instance 1" in done.stderr and sorted(done.stdout.splitlines()) == [
        b"[0] ran",
        b"[1] ran",
    ]


# Output


HAMMER = """
import os, sys
me = os.environ["HFACCEL_INSTANCE"].encode()
for number in range(1500):
    line = b"%d " % number + me * (number % 40) + (me * 200000 if number % 500 == 7 else b"")
    for stream in (sys.stdout.buffer, sys.stderr.buffer):
        stream.write(line + b"\\n")
        if number % 3 == 0:
            stream.flush()
for stream in (sys.stdout.buffer, sys.stderr.buffer):
    stream.write(b"half of a line")
    stream.flush()
    stream.write(b", the rest\\n" + bytes(b for b in range(256) if b != 10) + me)
"""


def hammered(number: int) -> list[bytes]:
    me = str(number).encode()
    lines = [b"%d " % i + me * (i % 40) + (me * 200000 if i % 500 == 7 else b"") + b"\n" for i in range(1500)]
    return [*lines, b"half of a line, the rest\n", bytes(b for b in range(256) if b != 10) + me + b"\n"]


@needs_two_cores
def test_lines_of_two_instances_do_not_mix():
    done = launched("--ninstances", "2", "-c", HAMMER)
    assert done.returncode == 0
    for output in (done.stdout, done.stderr):
        lines: dict[int, list[bytes]] = {}
        for line in output.split(b"\n")[:-1]:  # bytes.splitlines would split at \r too
            number, _, text = line.partition(b"] ")
            lines.setdefault(int(number[1:]), []).append(text + b"\n")
        assert lines == {number: hammered(number) for number in range(2)}


@needs_two_cores
def test_output_comes_while_the_programs_run(family):
    process = family.start(RUN, "--ninstances", "2", "--no-python", "sh", "-c", "echo ready; exec sleep 1000")
    read_lines(process.stdout, b"[0] ready\n", b"[1] ready\n")
    assert process.poll() is None


@needs_two_cores
def test_there_is_nothing_to_read_on_standard_input():
    done = launched(
        "--ninstances", "2", "-c", "import sys; print(repr(sys.stdin.read()))", input=b"for whom?"
    )
    assert sorted(done.stdout.splitlines()) == [b"[0] ''", b"[1] ''"]


@needs_two_cores
def test_programs_learn_that_their_reader_went_away(family):
    """`hfaccel-run ... yes | head -1` ends, as `yes | head -1` does."""
    reader, writer = os.pipe()
    process = family.start(RUN, "--ninstances", "2", "--no-python", "yes", stdout=writer)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGPIPE


@needs_two_cores
def test_a_full_disk_does_not_stop_them(family):
    """What is printed gets lost; a program that waited for ever would be worse."""
    with Path("/dev/full").open("wb") as full:
        code = "for number in range(20000): print('a line', number)"
        process = family.start(RUN, "--ninstances", "2", "-c", code, stdout=full)
        _, errors = process.communicate(timeout=LIMIT)
    assert b"Traceback" not in errors


@needs_two_cores
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-"])
def test_closed_standard_streams_do_not_stop_them(tmp_path, closed):
    shell = ["sh", "-c", f'"$@" {closed}', "sh", RUN, "--ninstances", "2", "--no-python"]
    done = start([*shell, "sh", "-c", 'touch "$0$HFACCEL_INSTANCE"; echo a line', str(tmp_path / "ran")])
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ran0", "ran1"}


# Logs


@needs_two_cores
def test_logs_hold_the_output_of_each_as_it_was(tmp_path):
    folder = tmp_path / "new" / "logs"
    code = 'printf "one $HFACCEL_INSTANCE\\n\\000\\377"; printf "two\\n" >&2'
    done = launched("--ninstances", "2", "--log-path", str(folder), "--no-python", "sh", "-c", code)
    assert done.returncode == 0
    for number in range(2):
        logged = (folder / f"instance_{number}.log").read_bytes()
        # Which of the two streams is read first nobody can say.
        assert sorted(logged.replace(b"\xff", b"\xff\n").splitlines()) == sorted(
            [f"one {number}".encode(), b"\0\xff", b"two"]
        )
    assert prefixed(done.stdout)[0] == [b"one 0\n", b"\0\xff\n"]
    assert prefixed(done.stderr)[0] == [b"two\n"]


def test_one_instance_may_have_a_log_too(tmp_path):
    code = "import sys; print('out'); print('error', file=sys.stderr, flush=True); sys.exit(3)"
    done = launched("--log-path", str(tmp_path), "-c", code)
    assert done.returncode == 3
    assert done.stdout == b"[0] out\n" and done.stderr.startswith(b"[0] error\n")
    assert sorted((tmp_path / "instance_0.log").read_text().splitlines()) == ["error", "out"]


def test_a_log_starts_anew(tmp_path):
    for text in ("a long first line", "short"):
        launched("--log-path", str(tmp_path), "--no-python", "echo", text)
    assert (tmp_path / "instance_0.log").read_text() == "short\n"


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none", "/dev/null"])
def test_a_log_folder_that_cannot_be_made_is_one_line(tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    text = refused("--log-path", place, "--no-python", "touch", "started", cwd=tmp_path)
    assert "--log-path must be a folder" in text and repr(place) in text
    assert not (tmp_path / "started").exists()


@needs_two_cores
@pytest.mark.parametrize("number", [0, 1])
def test_a_log_that_cannot_be_written_is_one_line_and_nothing_runs(family, tmp_path, number):
    (tmp_path / f"instance_{number}.log").mkdir()
    command = [RUN, "--ninstances", "2", "--log-path", str(tmp_path), "--no-python", "sleep", "1000"]
    text = one_line(family.run(*command))
    assert f"instance_{number}.log" in text
    assert family.members() == set()


# The end


def ends(family, code, *options):
    done = family.run(RUN, "--ninstances", "2", *options, "--no-python", "sh", "-c", code)
    assert family.members() == set()
    return done.returncode, done.stderr.decode()


ONE = 'if [ "$HFACCEL_INSTANCE" = 1 ]; then {one}; fi; {other}'


@needs_two_cores
def test_when_all_end_well_the_code_is_zero(family):
    assert ends(family, "exit 0") == (0, "")


@needs_two_cores
@pytest.mark.parametrize("code", [1, 3, 255])
def test_when_one_fails_its_code_is_ours_and_the_other_is_stopped(family, code):
    got, errors = ends(family, ONE.format(one=f"exit {code}", other="exec sleep 1000"))
    assert got == code
    assert errors == f"hfaccel-run: instance 1 ended with code {code}; stopping the others\n"


@needs_two_cores
def test_the_first_to_fail_gives_the_code(family):
    """The other one fails too, but only because it is stopped."""
    waits = "trap 'exit 4' TERM; while :; do sleep 0.05; done"
    assert ends(family, ONE.format(one="exit 3", other=waits))[0] == 3
    assert ends(family, ONE.format(one=waits, other="exit 5"))[0] == 5


@needs_two_cores
def test_one_that_ends_well_does_not_stop_the_other(family, tmp_path):
    """The second waits until the first is gone."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    code = ONE.format(one=f'exec 3>"{fifo}"; exit 0', other=f'cat "{fifo}"; exit 6')
    got, errors = ends(family, code)
    assert got == 6 and errors.startswith("hfaccel-run: instance 0 ended with code 6")


SIGNALS = {signal.SIGKILL: "SIGKILL", signal.SIGSEGV: "SIGSEGV", signal.SIGABRT: "SIGABRT", 40: "signal 40"}


@needs_two_cores
@pytest.mark.parametrize("number", SIGNALS, ids=SIGNALS.get)
def test_the_end_by_a_signal_is_shown_as_a_shell_does(family, number):
    code = ONE.format(one=f"ulimit -c 0; kill -{int(number)} $$", other="exec sleep 1000")
    got, errors = ends(family, code)
    assert got == 128 + number
    assert SIGNALS[number].removeprefix("signal ") in errors and "Traceback" not in errors


@needs_two_cores
def test_a_python_instance_that_raises_shows_its_traceback(family):
    done = family.run(
        RUN,
        "--ninstances",
        "2",
        "-c",
        "import os, time\nif os.environ['HFACCEL_INSTANCE'] == '1': 1 / 0\ntime.sleep(1000)",
    )
    assert done.returncode == 1
    assert b"[1] ZeroDivisionError: division by zero\n" in done.stderr.splitlines(keepends=True)
    assert family.members() == set()


@needs_two_cores
@pytest.mark.parametrize("program", ["./interpreter", "./format", "no-such-program"])
def test_a_program_that_cannot_be_started_is_one_line(family, tmp_path, program):
    for name, text in (("interpreter", "#!/no/such/interpreter\n"), ("format", "\x7fELF, but no more")):
        path = Path(tmp_path, name)
        path.write_text(text)
        path.chmod(0o755)
    for options in ([], ["--ninstances", "2"], ["--log-path", "logs"]):
        text = one_line(family.run(RUN, *options, "--no-python", program, cwd=tmp_path))
        assert program in text and "must be" in text
    assert family.members() == set()


@needs_two_cores
def test_the_verb_run_starts_instances_too():
    command = [RUN.removesuffix("-run"), "run", "--ninstances", "2", "--no-python", "echo", "a"]
    assert sorted(start(command).stdout.splitlines()) == [b"[0] a", b"[1] a"]
