"""hfaccel-run: start an unchanged program in the best environment for this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from hfaccel.commands import guarded, print_version
from hfaccel.commands.run_options import parse
from hfaccel.launcher import Launch, become, prepare


def main() -> int:
    return guarded(lambda: run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    options, settings, program = parse(arguments)
    if options.version:
        return print_version()
    launches = prepare(program, settings, os.environ)
    if options.dry_run or options.verbose or options.json:
        text = _as_json(launches) if options.json else _as_text(launches)
        print(text, file=sys.stdout if options.dry_run else sys.stderr)
    if options.dry_run:
        return 0
    for note in dict.fromkeys(note for launch in launches for note in launch.notes):
        print(f"hfaccel-run: {note}", file=sys.stderr)
    if len(launches) == 1 and options.log_path is None:
        become(launches[0])
    from hfaccel.launcher.instances import run_instances

    return run_instances(launches, options.log_path)


def _as_json(launches: Sequence[Launch]) -> str:
    import json

    described = [launch.to_dict(os.environ) for launch in launches]
    return json.dumps(described[0] if len(described) == 1 else {"instances": described})


def _as_text(launches: Sequence[Launch]) -> str:
    from hfaccel.tables import render

    parts = []
    for number, launch in enumerate(launches):
        title = "plan" if len(launches) == 1 else f"plan of instance {number}"
        rows = [[c.knob, c.value, c.source, c.reason] for c in launch.plan.choices]
        parts.append(render(title, ["knob", "value", "source", "reason"], rows))
    parts += dict.fromkeys(launch.advice for launch in launches if launch.advice)
    parts.append("the same without hfaccel (its children inherit the variables):")
    lines = [shell_line(launch, os.environ) for launch in launches]
    # In a shell several programs run at once with & between them, and wait.
    parts.append(lines[0] if len(lines) == 1 else " &\n".join([*lines, "wait"]))
    return "\n".join(parts)


def shell_line(launch: Launch, environment: Mapping[str, str]) -> str:
    """The command that does the same with util-linux's and numactl's programs."""
    import shlex

    variables = [f"{name}={shlex.quote(value)}" for name, value in launch.changes(environment).items()]
    line = " ".join(["env", *variables, shlex.join(launch.command)])
    policy, cpus = launch.plan["memory_policy"].value, launch.plan["affinity"].value
    if policy is not None:
        option = {"bind": "membind"}.get(policy.mode, policy.mode)
        line = f"numactl --{option}={','.join(map(str, policy.nodes))} {line}"
    if cpus:
        line = f"taskset -c {','.join(map(str, cpus))} {line}"
    return line


if __name__ == "__main__":
    sys.exit(main())
