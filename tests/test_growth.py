"""Memory does not grow without end over forwards of random shape. benchmarks/growth.py is the long run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = str(Path(__file__).parent.parent / "benchmarks/cases.py")
RUN = str(Path(sys.executable).with_name("hfaccel-run"))
PROGRAM = f"""
import json, runpy, sys
cases = runpy.run_path({CASES!r})
given = dict(checkpoints=[300, 1500], model="tiny")
main = cases["growth"](**given, configured="configure" in sys.argv)()["resident"]
worker = cases["growth"](**given, worker=True)()["resident"]
print(json.dumps([main, worker]))
"""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("command", "arguments"), [(RUN, ()), (sys.executable, ("configure",))], ids=["hfaccel-run", "configure"]
)
def test_memory_stays_where_it_is_once_it_has_its_size(command, arguments):
    # Few compiled shapes, so that it is the allocator that is tested: oneDNN's cache fills for longer.
    variables = {**os.environ, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [command, "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        env=variables,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for before, after in json.loads(done.stdout.splitlines()[-1]):
        assert after - before < 0.05 * before, f"{before // MIB} MiB became {after // MIB}"
