"""Every option of hfaccel-run and every other name of it, and what it asks for."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from launching import launched

from hfaccel.commands.run_options import _parser, parse
from hfaccel.errors import UsageError
from hfaccel.launcher import Settings
from hfaccel.plan import Request

# (names, its value, what it asks for, what else must be said)
INSTANCES = ["--ninstances", "4"]
OPTIONS = [
    (["--memory-allocator"], "glibc", Settings({"allocator": "glibc"}), []),
    (["--enable-tcmalloc"], None, Settings({"allocator": "tcmalloc"}), []),
    (["--enable-jemalloc"], None, Settings({"allocator": "jemalloc"}), []),
    (["--use-default-allocator"], None, Settings({"allocator": "default"}), []),
    (["--omp-runtime"], "intel", Settings({"omp_runtime": "intel"}), []),
    (["--disable-iomp"], None, Settings({"omp_runtime": "default"}), []),
    (["--huge-pages"], "off", Settings({"huge_pages": "off"}), []),
    (["--threads"], "3", Settings({"threads": "3"}), []),
    (["--cores-list", "--core-list"], "0-2,5", Settings(request=Request(cpus=(0, 1, 2, 5))), []),
    (["--node-id", "--nodes-list"], "0,2", Settings(request=Request(nodes=(0, 2))), []),
    (["--use-logical-cores", "--use-logical-core"], None, Settings(request=Request(siblings=True)), []),
    (["--no-bind"], None, Settings({"affinity": "off"}), []),
    (["--memory-policy"], "bind:0", Settings({"memory_policy": "bind:0"}), []),
    (["--ninstances"], "4", Settings(request=Request(instances=4)), []),
    (["--ncores-per-instance"], "2", Settings(request=Request(cores_per_instance=2)), []),
    (["--instance-idx", "--rank"], "3", Settings(request=Request(instances=4), instance=3), INSTANCES),
    (["--latency-mode"], None, Settings(request=Request(mode="latency")), []),
    (["--throughput-mode", "--multi-instance"], None, Settings(request=Request(mode="throughput")), []),
    (["--no-python"], None, Settings(python=False), []),
    (["--optimize"], None, Settings(optimize=True), []),
    # These change how it is told, not what is started.
    (["--dry-run"], None, Settings(), []),
    (["--json"], None, Settings(), []),
    (["--verbose"], None, Settings(), []),
    (["--log-path"], "logs", Settings(), []),
    # These are what hfaccel-run does anyway.
    (["--skip-cross-node-cores", "--disable-numactl", "--disable-taskset"], None, Settings(), []),
]
SPELLINGS = [(name, *rest) for names, *rest in OPTIONS for name in names]


@pytest.mark.parametrize(("name", "value", "settings", "others"), SPELLINGS, ids=[s[0] for s in SPELLINGS])
def test_an_option_asks_for_what_it_says(name, value, settings, others):
    """With hyphens and with underscores, its value behind it or after an equals sign."""
    underscored = "--" + name[2:].replace("-", "_")
    forms = [[form] for form in (name, underscored)]
    if value is not None:
        forms = [[form, value] for form in (name, underscored)] + [[f"{underscored}={value}"]]
    for form in forms:
        _, got, program = parse([*others, *form, "script.py", name])
        assert (got, program) == (settings, ["script.py", name])


def test_no_option_is_without_a_test():
    listed = {name for names, *_ in OPTIONS for name in names} | {"--profile", "--help", "-h", "--version"}
    assert {name for action in _parser()._actions for name in action.option_strings} == listed


def test_help_lists_every_option_with_a_meaning():
    done = launched("--help")
    text = done.stdout.decode()
    assert done.returncode == 0 and done.stderr == b""
    for names, *_ in OPTIONS:
        for name in names:
            assert re.search(rf"(?<![\w-]){name}(?![\w-])", text), name
    assert text.startswith("usage: hfaccel-run [options] [--] script.py")
    assert all(action.help for action in _parser()._actions)


def test_nothing_asked_for_leaves_everything_to_the_rules():
    _, settings, program = parse(["script.py", "--threads", "2"])
    assert settings == Settings() and program == ["script.py", "--threads", "2"]


# run_cpu writes these in another way than hfaccel-run's users would.
OTHERWISE = {"--module": "-m", "--log-file-prefix": "files are named by the instance's number"}


def test_the_options_of_torchs_run_cpu_are_taken():
    """Read from torch's own file, so that an option that appears there is noticed here."""
    import torch

    source = (Path(torch.__file__).parent / "backends" / "xeon" / "run_cpu.py").read_text()
    names = {
        argument.value
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "attr", "") == "add_argument"
        for argument in call.args
        if isinstance(argument, ast.Constant) and argument.value.startswith("--")
    }
    assert len(names) > 20
    ours = {name for action in _parser()._actions for name in action.option_strings}
    assert {name.replace("_", "-") for name in names} - ours == set(OTHERWISE)


# Contradictions


CONTRADICTIONS = [
    (["--enable-tcmalloc", "--enable-jemalloc"], "one allocator", "jemalloc and tcmalloc"),
    (["--enable-tcmalloc", "--use-default-allocator"], "one allocator", "default and tcmalloc"),
    (["--enable-jemalloc", "--use-default-allocator"], "one allocator", "default and jemalloc"),
    (["--memory-allocator", "glibc", "--enable-tcmalloc"], "one allocator", "glibc and tcmalloc"),
    (["--memory-allocator", "glibc", "--enable-jemalloc"], "one allocator", "glibc and jemalloc"),
    (["--memory-allocator", "glibc", "--use-default-allocator"], "one allocator", "default and glibc"),
    (["--disable-iomp", "--omp-runtime", "intel"], "one OpenMP runtime", "--omp-runtime intel"),
    (["--latency-mode", "--throughput-mode"], "one mode", "--latency-mode and --throughput-mode"),
    (["--latency-mode", "--multi-instance"], "one mode", "--latency-mode and --throughput-mode"),
    (["--no-bind", "--cores-list", "0"], "binding or none", "--no-bind and --cores-list"),
    (["--instance-idx", "0"], "--instance-idx with a number of instances", "add --ninstances"),
    (["--rank", "0", "--cores-list", "0"], "--instance-idx with a number", "add --ninstances"),
    (["--no-python", "--optimize"], "--optimize for Python programs", "--no-python too"),
]


@pytest.mark.parametrize(("options", "rule", "got"), CONTRADICTIONS, ids=lambda v: " ".join(v))
def test_a_contradiction_is_refused_in_either_order(options, rule, got):
    arguments = [[options[0], *options[1:]], [*options[1:], options[0]]]
    if options[1:2] and not options[1].startswith("--"):  # a value belongs to the first of them
        arguments = [options, [*options[2:], *options[:2]]]
    for given in arguments:
        with pytest.raises(UsageError) as caught:
            parse([*given, "script.py"])
        text = str(caught.value)
        assert rule in text and got in text and "\n" not in text


@pytest.mark.parametrize(
    "options",
    [
        ["--memory-allocator", "jemalloc", "--enable-jemalloc"],
        ["--memory-allocator", "default", "--use-default-allocator"],
        ["--disable-iomp", "--omp-runtime", "default"],
        ["--no-bind", "--threads", "2"],
        ["--instance-idx", "1", "--ncores-per-instance", "1"],
        ["--instance-idx", "0", "--latency-mode"],
        ["--ninstances", "2", "--ncores-per-instance", "1", "--use-logical-cores"],
    ],
    ids=" ".join,
)
def test_what_agrees_is_taken(options):
    parse([*options, "script.py"])


# Values that are refused before anything is planned


@pytest.mark.parametrize("option", ["--cores-list", "--node-id"])
@pytest.mark.parametrize(
    "value", ["a", "5-2", "0-", "-", "-1", "1--2", "0 1", "0;1", "1.5", "9" * 30, "0-99999"]
)
def test_a_list_that_is_none_is_refused(option, value):
    with pytest.raises(UsageError) as caught:
        parse([f"{option}={value}", "script.py"])
    text = str(caught.value)
    assert text.startswith(f"{option}: ") and value[:30] in text and "\n" not in text


def one_line(error):
    """What is printed of a bad option: no usage of twenty lines above it."""
    text = str(error)
    assert "\n" not in text and text.endswith("see hfaccel-run --help")
    return text


@pytest.mark.parametrize("value", ["0", "-1", "x", "", "1.5", "65536", "9" * 30, "²"])
@pytest.mark.parametrize("option", ["--ninstances", "--ncores-per-instance"])
def test_a_count_must_be_a_number_from_one_on(option, value):
    with pytest.raises(UsageError) as caught:
        parse([f"{option}={value}", "script.py"])
    last = one_line(caught.value)
    assert option in last and repr(value) in last and "a number from 1 on" in last


@pytest.mark.parametrize("value", ["-1", "x", "", "1.5", "9" * 30])
def test_an_index_must_be_a_number_from_zero_on(value):
    with pytest.raises(UsageError) as caught:
        parse(["--ninstances", "2", f"--rank={value}", "script.py"])
    last = one_line(caught.value)
    assert "--rank" in last and "a number from 0 on" in last


@pytest.mark.parametrize(
    "option", ["--ninstances", "--cores-list", "--memory-policy", "--profile", "--log-path"]
)
def test_an_option_at_the_end_lacks_its_value(option):
    with pytest.raises(UsageError) as caught:
        parse([option])
    assert "expected one argument" in one_line(caught.value)
