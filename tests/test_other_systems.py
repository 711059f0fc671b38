"""Where Linux's ways are missing everything can be called: on Windows and macOS, without /proc and /sys."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from hfaccel import native

# As on these systems, as far as hfaccel can tell. Their wheels have no extensions.
WITHOUT_EXTENSIONS = """
import sys
sys.modules["hfaccel._arena"] = sys.modules["hfaccel._kernels"] = None
"""
MACOS = f"""{WITHOUT_EXTENSIONS}
import fcntl, os
for name in [name for name in dir(fcntl) if "SEAL" in name]:
    delattr(fcntl, name)
for name in ("sched_getaffinity", "sched_setaffinity", "memfd_create"):
    delattr(os, name)
"""
WINDOWS = f"""{MACOS}
import torch, multiprocessing.reduction
for name in ("fcntl", "resource", "pwd", "grp"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "geteuid", "uname"):
    delattr(os, name)
del multiprocessing.reduction.DupFd
"""
# With the extensions, as on Linux in a bare chroot.
LINUX_WITHOUT_PROC = "import os\nassert not os.path.exists('/proc/self') + os.path.exists('/sys/kernel')\n"

USE = """
import json, torch
import hfaccel, hfaccel.auto
from hfaccel import memory
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()

given = torch.ones(3, 64)
expected = model()(given)
fast = hfaccel.optimize(model())
report = hfaccel.report(fast)
found = {
    "backend": report.backend,
    "reasons": [row.reason for row in report.outcomes],
    "equal": torch.allclose(fast(given), expected, atol=1e-5),
    "printed": "verified" in str(report),
    "affinity": [row.reason for row in hfaccel.configure(affinity=[0]).outcomes if row.subject == "affinity"],
}
packed = model()
done = memory.pack_(packed)
found["packed"] = [done.moved > 0, done.problem, bool((packed(given) == expected).all())]
shared = memory.share(model())
found["shared"] = memory.shared(shared).outcome.reason
found["released"] = memory.release() >= 0
try:
    found["coverage"] = memory.coverage(packed)
except hfaccel.HfaccelError as error:
    found["coverage"] = str(error)
hfaccel.serve.Batcher(list)
found["info"] = "plan" in str(hfaccel.info())
print(json.dumps(found))
"""


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module", params=[MACOS, WINDOWS], ids=["macos", "windows"])
def elsewhere(request):
    return run(sys.executable, "-c", request.param + USE)


def test_elsewhere_the_model_stays_as_it_is_with_the_reason(elsewhere):
    assert elsewhere["equal"] and elsewhere["printed"] and elsewhere["info"] and elsewhere["released"]
    assert any("the native part is missing" in reason for reason in elsewhere["reasons"])


def test_elsewhere_what_the_system_lacks_is_a_reason(elsewhere):
    assert elsewhere["affinity"] == ["sched_setaffinity([0]) failed: this system has no affinity masks"]
    assert elsewhere["shared"] == (
        "the system refuses shared memory: this system has no memory that can be sealed (memfd_create)"
    )
    moved, problem, equal = elsewhere["packed"]
    assert moved and equal and "the native part is missing" in problem


HIDE = "mount -t tmpfs none /proc && mount -t tmpfs none /sys"
UNSHARE = ("unshare", "--map-root-user", "--mount", "sh", "-c")


@pytest.fixture(scope="module")
def bare():
    try:
        allowed = subprocess.run([*UNSHARE, HIDE], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("no mount namespaces here")
    return run(*UNSHARE, f'{HIDE} && exec "$0" -c "$1"', sys.executable, LINUX_WITHOUT_PROC + USE)


def test_without_proc_everything_works(bare):
    assert bare["equal"] and bare["printed"] and bare["info"] and bare["released"]


@pytest.mark.skipif(native.arena is None, reason="the native part is missing")
def test_without_proc_tensors_move_and_what_became_of_them_is_unknown(bare):
    moved, problem, equal = bare["packed"]
    assert moved and equal and "/proc/self/smaps cannot be read" in problem
    assert bare["coverage"] == "coverage cannot be read: /proc/self/smaps cannot be read"
