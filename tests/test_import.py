"""What importing hfaccel does, seen from a fresh process: almost nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hfaccel

HEAVY = ("torch", "transformers", "numpy")


def in_fresh_process(code, *arguments, **environment):
    """Run `code`, which prints one line of JSON as its last; returns it."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


LOADED = f"""
import json, sys
print(json.dumps([name for name in {HEAVY} if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "module",
    [
        "hfaccel",
        "hfaccel.apply.environ",
        "hfaccel.apply.hooks",
        "hfaccel.apply.process",
        "hfaccel.auto",
        "hfaccel.commands.doctor",
        "hfaccel.commands.info",
        "hfaccel.commands.run",
        "hfaccel.configuration",
        "hfaccel.host",
        "hfaccel.launcher",
        "hfaccel.plan",
        "hfaccel.serve",
    ],
)
def test_importing_loads_nothing_heavy(module):
    assert in_fresh_process(f"import {module}\n{LOADED}") == []


ROOT = str(Path(hfaccel.__file__).parent.parent)
NEW = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import {module}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def new_modules(module):
    """What an import loads in a Python without site-packages, whose .pth files load this and that."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", NEW.format(module=module), ROOT],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["hfaccel.auto", "hfaccel.apply.hooks"])
def test_what_runs_in_every_program_loads_little(module):
    """HFACCEL_AUTO=1 concerns every start of Python."""
    slow = {"subprocess", "dataclasses", "inspect", "logging", "asyncio", "rich", "argparse", "pathlib"}
    loaded = new_modules(module)
    assert module in loaded
    assert not slow & set(loaded)


def test_importing_the_package_loads_no_other_module():
    assert set(new_modules("hfaccel")) - {"__future__"} == {"hfaccel"}


def test_the_check_sees_what_is_loaded():
    # Without this a typing error above would let every process pass.
    assert "numpy" in in_fresh_process(f"import sys; sys.modules['numpy'] = sys\n{LOADED}")


def test_importing_changes_nothing_of_the_process():
    code = """
import json, os, signal, sys
def state():
    signals = [str(signal.getsignal(s)) for s in signal.valid_signals()]
    return [dict(os.environ), sorted(os.sched_getaffinity(0)), os.getcwd(), sys.path[:], sys.argv[:], signals]
before = state()
import hfaccel
print(json.dumps([b == a for b, a in zip(before, state(), strict=True)]))
"""
    assert in_fresh_process(code) == [True] * 6


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_dry_run_loads_nothing_heavy(form, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('a dry run starts nothing')")
    code = f"import sys\nfrom hfaccel.commands.run import run\nassert run(sys.argv[1:]) == 0\n{LOADED}"
    assert in_fresh_process(code, "--dry-run", *form, str(script)) == []


def test_the_public_names_are_those_of_the_package():
    assert list(hfaccel.__all__) == sorted(set(hfaccel.__all__))
    assert set(hfaccel.__all__) <= set(dir(hfaccel))


RESOLVE = """
import importlib, json, sys
import torch  # once, because each round below forgets hfaccel only

def kinds(first):
    for name in list(sys.modules):
        if name.split(".")[0] == "hfaccel" and name not in ("hfaccel._arena", "hfaccel._snapshot"):
            del sys.modules[name]
    hfaccel = importlib.import_module("hfaccel")
    getattr(hfaccel, first)
    return {name: type(getattr(hfaccel, name)).__name__ for name in hfaccel.__all__}

import hfaccel
print(json.dumps({first: kinds(first) for first in hfaccel.__all__}))
"""


def test_public_names_resolve_whichever_is_used_first():
    # Importing hfaccel.optimize, the module, sets an attribute of that name on the package: it must not
    # take the place of the function.
    kinds = {"HfaccelError": "type", "memory": "module", "serve": "module", "tune": "module"}
    expected = {name: kinds.get(name, "function") for name in hfaccel.__all__}
    assert in_fresh_process(RESOLVE) == dict.fromkeys(hfaccel.__all__, expected)


def test_importing_a_module_does_not_hide_the_function_of_its_name():
    code = """
import importlib, importlib.util, json
import hfaccel
functions = [name for name in hfaccel.__all__ if name not in ("memory", "serve", "tune")]
for name in functions:
    if importlib.util.find_spec(f"hfaccel.{name}"):
        importlib.import_module(f"hfaccel.{name}")
print(json.dumps([name for name in functions if not callable(getattr(hfaccel, name))]))
"""
    assert in_fresh_process(code) == []


def test_an_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError) as raised:
        _ = hfaccel.optimise
    message = str(raised.value)
    assert "'optimise'" in message
    assert all(name in message for name in hfaccel.__all__)
    assert not hasattr(hfaccel, "torch")


def test_an_unknown_name_loads_nothing_heavy():
    assert in_fresh_process(f"import hfaccel\nhasattr(hfaccel, 'optimise')\n{LOADED}") == []
