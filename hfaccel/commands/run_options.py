"""The options of hfaccel-run, and those of run_cpu and ipexrun as aliases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from hfaccel.errors import UsageError
from hfaccel.host import parse_number_list
from hfaccel.launcher import Settings
from hfaccel.plan import Request
from hfaccel.plan.profile import Profile, read_profile

USAGE = """hfaccel-run [options] [--] script.py [arguments]
       hfaccel-run [options] -m module [arguments]
       hfaccel-run [options] --no-python program [arguments]"""


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, Settings, list[str]]:
    """The options, the settings that follow from them, and the program with its arguments.

    Raises UsageError for an option or value that breaks a rule."""
    parser = _parser()
    head, program = split(arguments, parser)
    options = parser.parse_args(head)
    _check_contradictions(options)
    settings = Settings(
        overrides=_overrides(options),
        profile=Profile() if options.profile is None else read_profile(options.profile),
        request=_request(options),
        instance=options.instance_idx,
        python=not options.no_python,
        optimize=options.optimize,
    )
    return options, settings, program


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see hfaccel-run --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="hfaccel-run",
        usage=USAGE,
        description="Start an unchanged program in the best environment for this machine.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version and start nothing")
    parser.add_argument("--no-python", action="store_true", help="the program is an executable")
    parser.add_argument("--optimize", action="store_true", help="optimize the models that the program loads")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and start nothing")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--verbose", action="store_true", help="print the plan, then start the program")
    parser.add_argument("--profile", metavar="FILE", help="settings that hfaccel tune found")
    _add_libraries(parser.add_argument_group("libraries"))
    _add_places(parser.add_argument_group("threads and places"))
    _add_instances(parser.add_argument_group("several instances"))
    return parser


def _add_libraries(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--memory-allocator",
        metavar="NAME",
        help="auto, default (leave it), mimalloc, jemalloc, tcmalloc, glibc, or a path to a library",
    )
    for name in ("tcmalloc", "jemalloc"):
        group.add_argument(
            f"--enable-{name}",
            dest="allocators",
            action="append_const",
            const=name,
            help=f"the same as --memory-allocator {name}",
        )
    group.add_argument(
        "--use-default-allocator",
        dest="allocators",
        action="append_const",
        const="default",
        help="the same as --memory-allocator default",
    )
    group.add_argument(
        "--omp-runtime", metavar="NAME", help="auto, default (torch's own), intel, or a path to a library"
    )
    group.add_argument("--disable-iomp", action="store_true", help="the same as --omp-runtime default")
    group.add_argument("--huge-pages", metavar="WHEN", help="auto or off")


def _add_places(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--threads", metavar="N", help="compute threads (default: the usable cores)")
    group.add_argument(
        "--cores-list", "--core-list", metavar="LIST", help="bind to these CPU numbers, for example 0-3,8"
    )
    group.add_argument(
        "--node-id", "--nodes-list", metavar="LIST", help="stay on these NUMA nodes, for example 0 or 0,1"
    )
    group.add_argument(
        "--use-logical-cores",
        "--use-logical-core",
        action="store_true",
        help="use every CPU of a core, not one",
    )
    group.add_argument("--no-bind", action="store_true", help="leave the affinity mask as it is")
    group.add_argument("--memory-policy", metavar="POLICY", help="off, preferred:0, bind:0, interleave:0-1")


def _add_instances(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--ninstances", metavar="N", type=_count, help="number of instances")
    group.add_argument("--ncores-per-instance", metavar="N", type=_count, help="cores of each instance")
    group.add_argument(
        "--instance-idx", "--rank", metavar="I", type=_index, help="start only this one, counted from 0"
    )
    group.add_argument("--latency-mode", action="store_true", help="4 cores for each, all cores in use")
    group.add_argument(
        "--throughput-mode", "--multi-instance", action="store_true", help="one on each NUMA node"
    )
    for name, why in (
        ("--skip-cross-node-cores", "instances of a given size never cross nodes"),
        ("--disable-numactl", "numactl is not used"),
        ("--disable-taskset", "taskset is not used"),
    ):
        group.add_argument(name, action="store_true", help=f"accepted for run_cpu's users: {why}")
    group.add_argument("--log-path", metavar="DIR", help="also write the output of each to a file in DIR")


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or not least <= int(text) < 1 << 16:
        raise argparse.ArgumentTypeError(f"a number from {least} on is expected, but got {text!r}")
    return int(text)


def _index(text: str) -> int:
    return _count(text, 0)


def split(arguments: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """hfaccel-run's own options, and the program with its arguments as they are.

    Options may be spelled with underscores (`--memory_allocator`).
    """
    takes_value = {
        name for action in parser._actions for name in action.option_strings if action.nargs is None
    }
    head: list[str] = []
    rest = list(arguments)
    while rest:
        if rest[0] == "--":
            return head, rest[1:]
        if not rest[0].startswith("--") and rest[0] != "-h":
            return head, rest
        name, equals, value = rest.pop(0).partition("=")
        name = name.replace("_", "-")
        head.append(name + equals + value)
        if name in takes_value and not equals and rest:
            head.append(rest.pop(0))
    return head, rest


def _check_contradictions(options: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other."""
    allocators = set(options.allocators or ()) | ({options.memory_allocator} - {None})
    pairs = (
        (len(allocators) > 1, "one allocator", " and ".join(sorted(allocators))),
        (
            options.disable_iomp and options.omp_runtime not in (None, "default"),
            "one OpenMP runtime",
            f"--disable-iomp and --omp-runtime {options.omp_runtime}",
        ),
        (
            options.latency_mode and options.throughput_mode,
            "one mode",
            "--latency-mode and --throughput-mode",
        ),
        (options.no_bind and options.cores_list, "binding or none", "--no-bind and --cores-list"),
        (
            options.instance_idx is not None and not (options.profile or _asks_for_instances(options)),
            "--instance-idx with a number of instances",
            "--instance-idx alone; add --ninstances",
        ),
        (options.no_python and options.optimize, "--optimize for Python programs", "--no-python too"),
    )
    for broken, rule, got in pairs:
        if broken:
            raise UsageError(f"options must ask for {rule}, but got {got}")


def _asks_for_instances(options: argparse.Namespace) -> bool:
    return bool(
        options.ninstances or options.ncores_per_instance or options.latency_mode or options.throughput_mode
    )


def _overrides(options: argparse.Namespace) -> dict[str, object]:
    allocator = options.memory_allocator
    if allocator is None:
        allocator = next(iter(options.allocators or ()), None)
    wanted = {
        "allocator": allocator,
        "omp_runtime": "default" if options.disable_iomp else options.omp_runtime,
        "threads": options.threads,
        "huge_pages": options.huge_pages,
        "memory_policy": options.memory_policy,
        "affinity": "off" if options.no_bind else None,
    }
    return {knob: value for knob, value in wanted.items() if value is not None}


def _request(options: argparse.Namespace) -> Request:
    return Request(
        instances=options.ninstances,
        cores_per_instance=options.ncores_per_instance,
        nodes=_list("--node-id", options.node_id),
        cpus=_list("--cores-list", options.cores_list),
        siblings=options.use_logical_cores,
        mode="latency" if options.latency_mode else "throughput" if options.throughput_mode else None,
    )


def _list(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return parse_number_list(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
