"""Starting programs with and without hfaccel-run, as the tests of this folder do it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = str(Path(sys.executable).with_name("hfaccel-run"))
LIMIT = 120  # seconds: a hanging program fails its test instead of stopping the whole run
# What hfaccel-run sets for the program and its children on purpose.
INHERITED = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"}
# Variables of whoever runs the tests that would decide something here.
DECIDING = ("PYTHON", "OMP_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MIMALLOC_", "GLIBC_", "HFACCEL_")


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
    done = launched(*program, **options)
    text = done.stderr.decode()
    assert done.returncode == 2, text
    assert done.stdout == b""
    assert text.startswith("hfaccel: ") and text.endswith("\n") and text.count("\n") == 1, text
    return text
