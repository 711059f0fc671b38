"""hfaccel-run in real processes: the program must not be able to tell it from plain Python."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import zipfile

import pytest
from launching import LIMIT, RUN, environment, launched, plain, same, start

ARGUMENTS = [
    ["two words", "'single' \"double\"", "", "\tline\nbreak", "back\\slash"],
    ["", "", ""],
    ["größe", "模型", "🙂", b"not-utf8-\xff"],
    ["--threads", "3", "--dry-run", "--json", "--help", "-h", "--memory_allocator=x"],
    ["--", "-", "-c", "-m", "--", "$HOME", "*", "~", "%s", "{}"],
]

# ascii() shows every character, whatever the locale of the pipe.
ARGV = "import sys; print(ascii(sys.argv), ascii(sys.orig_argv[1:]))\n"

STATE = """
import os, signal, sys, __main__
state = {
    "argv": sys.argv,
    "orig_argv": sys.orig_argv[1:],
    "name": __name__,
    "file": globals().get("__file__"),
    "spec": getattr(__spec__, "name", None),
    "package": __package__,
    "main": sorted(vars(__main__)),
    "path": sys.path,
    "flags": list(sys.flags),
    "warnings": sys.warnoptions,
    "xoptions": sys._xoptions,
    "prefix": sys.prefix,
    "meta_path": [getattr(f, "__name__", type(f).__name__) for f in sys.meta_path
                  if type(f).__module__ != "hfaccel.apply.hooks"],  # waits for the import of torch
    "cwd": os.getcwd(),
    "descriptors": sorted(os.listdir("/proc/self/fd")),
    "mask": sorted(map(str, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
    "handlers": [str(signal.getsignal(s)) for s in sorted(signal.valid_signals()) if "at 0x" not in
                 str(signal.getsignal(s))],
    "cpus": sorted(os.sched_getaffinity(0)),
    "modules": sorted(sys.modules),
}
import json
print(json.dumps(state))
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def write_zip(path, text):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__main__.py", text)
    return str(path)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_arguments_arrive_unchanged(tmp_path, arguments):
    script = write(tmp_path / "my script.py", ARGV)
    done = same(script, *arguments)
    texts = [a.decode(errors="surrogateescape") if isinstance(a, bytes) else a for a in arguments]
    assert done.stdout.decode().startswith(ascii([script, *texts]))


# The import of sitecustomize must leave something in sys.modules; the others are there for its hooks.
ADDED = {"sitecustomize", "hfaccel", "__future__", "collections", "contextlib", "importlib"}


@pytest.mark.parametrize(
    "form", ["script", "relative", "folder", "zip", "module", "package", "code", "stdin"]
)
def test_the_interpreter_is_in_the_same_state(tmp_path, form):
    write(tmp_path / "mod.py", STATE)
    write(tmp_path / "pack" / "__main__.py", STATE)
    program, options = {
        "script": ([str(tmp_path / "mod.py")], {}),
        "relative": (["pack/../mod.py"], {}),
        "folder": ([str(tmp_path / "pack")], {}),
        "zip": ([write_zip(tmp_path / "app.zip", STATE)], {}),
        "module": (["-m", "mod"], {}),
        "package": (["-m", "pack"], {}),
        "code": (["-c", STATE], {}),
        "stdin": (["-"], {"input": STATE.encode()}),
    }[form]
    # --no-bind: the affinity mask is what hfaccel-run changes on purpose.
    expected = json.loads(plain(*program, "x", "-y", cwd=tmp_path, **options).stdout)
    got = json.loads(launched("--no-bind", *program, "x", "-y", cwd=tmp_path, **options).stdout)
    expected_modules, modules = set(expected.pop("modules")), set(got.pop("modules"))
    assert expected_modules <= modules
    added = {name.partition(".")[0] for name in modules - expected_modules}
    assert added <= ADDED, "every one of them takes time and may be one that the program brings itself"
    assert got == expected


@pytest.mark.parametrize("path", ["lib", "lib:", ":lib", "lib::other", "/nowhere:lib:lib", "."])
def test_the_users_pythonpath_gives_the_same_sys_path(tmp_path, path):
    write(tmp_path / "lib" / "beside.py", "print('imported')")
    code = "import os, sys; print(sys.path, os.environ['PYTHONPATH'])\nimport beside"
    options = {"env": {"PYTHONPATH": path}, "cwd": tmp_path / "lib" if path == "." else tmp_path}
    assert b"imported" in same("-c", code, **options).stdout


@pytest.mark.parametrize("variable", ["PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONOPTIMIZE", "PYTHONUTF8"])
def test_pythons_own_variables_are_obeyed(tmp_path, variable):
    same("-c", "import sys; print(sys.path, list(sys.flags))", env={variable: "1"}, cwd=tmp_path)


RAISES = """
def inner():
    return {}["missing"]
print("before")
try:
    inner()
except KeyError as error:
    raise RuntimeError("größe") from error
"""


def test_a_traceback_is_the_same_byte_for_byte(tmp_path):
    script = write(tmp_path / "fails.py", RAISES)
    done = same(script)
    assert done.returncode == 1 and b"KeyError" in done.stderr and done.stdout == b"before\n"
    same("-m", "fails", cwd=tmp_path)
    same("-c", "1 / 0")
    same("-", input=b"1 / 0")
    assert b"SyntaxError" in same(write(tmp_path / "syntax.py", "def f(:\n")).stderr


EXITS = {
    "pass": 0,
    "import sys; sys.exit(3)": 3,
    "import sys; sys.exit(256)": 0,
    "import sys; sys.exit(-1)": 255,
    "import sys; sys.exit('a text')": 1,
    "import sys; sys.exit(None)": 0,
    "raise ValueError(1)": 1,
    "raise KeyboardInterrupt": -signal.SIGINT,
    "import os; os._exit(7)": 7,
    "import os, signal; os.kill(os.getpid(), signal.SIGKILL)": -signal.SIGKILL,
    "import os; os.abort()": -signal.SIGABRT,
}


@pytest.mark.parametrize("code", EXITS)
def test_the_exit_code_is_the_programs(code):
    assert same("-c", code).returncode == EXITS[code]


def test_a_missing_module_is_pythons_own_message():
    expected, got = plain("-m", "no_such_module"), launched("-m", "no_such_module")
    assert got.returncode == expected.returncode == 1
    # Before the first colon stands the interpreter's path, which has several names.
    assert got.stderr.partition(b": ")[2] == expected.stderr.partition(b": ")[2]


def test_a_folder_without_main_is_left_to_python(tmp_path):
    expected, got = plain(str(tmp_path)), launched(str(tmp_path))
    assert got.returncode == expected.returncode == 1
    assert got.stderr.partition(b": ")[2] == expected.stderr.partition(b": ")[2]
    assert b"__main__" in got.stderr


def test_options_end_at_the_program_or_at_two_dashes(tmp_path):
    script = write(tmp_path / "a.py", ARGV)
    expected = plain(script, "--dry-run").stdout
    for options in ([], ["--"], ["--threads", "1"], ["--threads=1", "--"], ["--no_bind", "--"]):
        assert launched(*options, script, "--dry-run").stdout == expected


def test_a_script_that_starts_with_a_dash_can_be_named(tmp_path):
    write(tmp_path / "-x.py", ARGV)
    done = launched("./-x.py", "1", cwd=tmp_path)
    assert done.stdout == plain("./-x.py", "1", cwd=tmp_path).stdout != b""


def test_standard_input_passes_through():
    data = bytes(range(256)) * 1000
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
    assert same("-c", code, input=data).stdout == data[::-1]


def test_the_process_id_stays():
    command = [RUN, "-c", "import os; print(os.getpid())"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        output, _ = process.communicate(timeout=LIMIT)
    assert int(output) == process.pid


# os.write, because a handler may interrupt a print and must not print then.
WAITS = """
import os, signal, sys, time
def handler(number, frame):
    os.write(1, b"got " + signal.Signals(number).name.encode() + b"\\n")
    sys.exit(5)
signal.signal(signal.Signals[sys.argv[1]], handler)
os.write(1, b"ready\\n")
while True:
    time.sleep(0.05)  # a signal before signal.pause() would be slept through
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_signals_reach_the_programs_handlers(name):
    command = [RUN, "-c", WAITS, name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.Signals[name])
        output, _ = process.communicate(timeout=LIMIT)
    assert output.decode() == f"got {name}\n"
    assert process.returncode == 5


def test_ignored_signals_stay_ignored():
    """As under nohup: what the parent ignores, the program ignores."""
    code = "import signal as s; print(repr(s.getsignal(s.SIGHUP)), repr(s.getsignal(s.SIGINT)))"
    lines = []
    for command in ([sys.executable, "-c", code], [RUN, "-c", code]):
        shell = ["sh", "-c", 'trap "" HUP INT; exec "$@"', "sh", *command]
        lines.append(subprocess.check_output(shell, env=environment(), timeout=LIMIT))
    assert lines[0] == lines[1] and b"SIG_IGN" in lines[0]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_stay_closed(tmp_path, closed):
    """As daemons start their programs."""
    texts = []
    for command in ([sys.executable], [RUN]):
        file = tmp_path / "streams"
        code = (
            "import os, sys; open(sys.argv[1], 'w').write(repr([s and s.fileno() for s in"
            " (sys.stdin, sys.stdout, sys.stderr)]))"
        )
        shell = ["sh", "-c", f'"$@" {closed}', "sh", *command, "-c", code, str(file)]
        done = start(shell)
        assert done.returncode == 0, done.stderr.decode()
        assert done.stderr == b""
        texts.append(file.read_text())
        file.unlink()
    assert texts[0] == texts[1] and "None" in texts[0]


def test_descriptors_that_were_inherited_are_there(tmp_path):
    """As systemd and make pass sockets and pipes on."""
    (tmp_path / "file").write_text("of the descriptor")
    code = "import os; print(os.read(7, 100))"
    shell = ["sh", "-c", '"$@" 7<file', "sh", RUN, "-c", code]
    assert start(shell, cwd=tmp_path).stdout == b"b'of the descriptor'\n"


def test_a_read_only_home_does_not_matter():
    for home in ("/dev/null/home", "/proc", ""):
        assert same("-c", "import os; print(os.environ['HOME'])", env={"HOME": home}).returncode == 0


def test_the_verb_run_is_the_same_program(tmp_path):
    script = write(tmp_path / "a.py", ARGV)
    verb = RUN.removesuffix("-run")
    output = subprocess.check_output([verb, "run", "--no-bind", script, "--json"], env=environment())
    assert output == plain(script, "--json").stdout
