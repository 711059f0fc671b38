"""What is built from the sources: an sdist and a wheel, and a wheel where there is no compiler."""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Without isolation nothing is downloaded; with it the build requirements come from the package index.
ISOLATION = ["--no-isolation"] if importlib.util.find_spec("scikit_build_core") else []
NO_COMPILER = {"CC": "/nonexistent", "CXX": "/nonexistent"}


def build(*arguments, **variables):
    done = subprocess.run(
        [sys.executable, "-m", "build", *ISOLATION, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def only(folder, pattern):
    (path,) = Path(folder).glob(pattern)
    return path


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist, and a wheel made of that sdist: what the sdist lacks, the wheel lacks too."""
    if not shutil.which("cc") and not os.environ.get("CC"):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("dist")
    build("--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The unpacked sdist. Making one needs no compiler."""
    folder = tmp_path_factory.mktemp("sources")
    compileall.compile_file(ROOT / "hfaccel" / "errors.py", quiet=2)  # something that must stay out
    build("--sdist", "--outdir", folder, ROOT)
    with tarfile.open(only(folder, "*.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    return only(folder, "hfaccel-*/pyproject.toml").parent


@pytest.fixture(scope="module")
def without_compiler(sources, tmp_path_factory):
    """The folder of the unpacked wheel that was built as if no compiler were here; and what was said."""
    folder = tmp_path_factory.mktemp("without")
    said = build("--wheel", "--outdir", folder, sources, **NO_COMPILER)
    wheel = only(folder, "*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked", said


def python_files():
    return {str(path.relative_to(ROOT)) for path in (ROOT / "hfaccel").rglob("*.py")}


def test_the_wheel_holds_everything_that_is_needed(built):
    wheel = only(built, "*.whl")
    assert "-cp311-abi3-linux_" in wheel.name or "-cp311-abi3-manylinux" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(name for name in names if name.endswith("dist-info/WHEEL"))).decode()
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {"hfaccel/_arena.abi3.so", "hfaccel/_snapshot.abi3.so"} <= names
    assert {"hfaccel/py.typed", "hfaccel/_site/sitecustomize.py"} | python_files() <= names
    assert "Tag: cp311-abi3-" in metadata and "Root-Is-Purelib: false" in metadata
    assert "hfaccel-run" in commands and "hfaccel=" in commands.replace(" ", "")
    # Nothing lands beside the package in a user's site-packages but what reads HFACCEL_AUTO.
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"hfaccel", "hfaccel.pth"}


def test_the_metadata_agrees_with_the_package(built):
    import hfaccel

    with zipfile.ZipFile(only(built, "*.whl")) as archive:
        name = next(name for name in archive.namelist() if name.endswith("dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    assert metadata["Version"] == hfaccel.__version__
    assert metadata["Requires-Python"] == ">=3.11"
    needed = " ".join(metadata.get_all("Requires-Dist"))
    assert all(package in needed for package in ("torch", "transformers", "cmeel-mimalloc"))


def test_the_sdist_holds_the_sources(sources):
    for name in ("native/CMakeLists.txt", "native/os.c", "hfaccel/py.typed", "README.md", "LICENSE"):
        assert (sources / name).is_file(), name
    assert python_files() <= {str(path.relative_to(sources)) for path in sources.rglob("*.py")}
    assert not list(sources.rglob("*.so")) and not list(sources.rglob("*.pyc"))


def test_without_a_compiler_the_wheel_lacks_the_extension_alone(without_compiler):
    folder, said = without_compiler
    assert "no C compiler: building hfaccel without its arena" in said
    assert not list(folder.rglob("*.so"))
    assert python_files() <= {str(path.relative_to(folder)) for path in folder.rglob("*.py")}


USE = """
import json, sys
sys.path[:0] = [sys.argv[1]]
sys.path += sys.argv[2:]
import torch
import hfaccel
from hfaccel import native
from transformers import BertConfig, BertModel

torch.manual_seed(0)
sizes = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
model = BertModel(BertConfig(vocab_size=100, **sizes)).eval()
ids = torch.randint(5, 100, (2, 12))
mask = torch.ones_like(ids)
mask[1, 7:] = 0
configuration = hfaccel.configure(allocator="glibc")
with torch.inference_mode():
    expected = model(input_ids=ids, attention_mask=mask)[0]
    faster = hfaccel.optimize(model)
    got = faster(input_ids=ids, attention_mask=mask)[0]
difference = (expected - got)[mask.bool()].abs().max().item()
report = hfaccel.report(faster)
from hfaccel.doctor.checks import NativePart
print(json.dumps({
    "file": hfaccel.__file__,
    "arena": native.arena is None,
    "missing": native.MISSING,
    "outcomes": {o.subject: [o.applied, o.reason] for o in configuration.outcomes},
    "difference": difference,
    "backend": report.backend,
    "printed": str(report),
    "doctor": NativePart().find(configuration.facts).status,
    "restored": type(hfaccel.restore(faster)).__name__,
    "empty": list(hfaccel.memory.empty((1024, 1024)).shape),
}))
"""


@pytest.fixture(scope="module")
def used(without_compiler):
    """A model optimized by that wheel. -S keeps an installed hfaccel's import hooks out; the packages
    it needs are those of this environment."""
    folder, _ = without_compiler
    packages = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    command = [sys.executable, "-S", "-c", USE, str(folder), *packages]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_without_the_extension_its_cost_is_said(used):
    folder, seen = used
    assert seen["file"] == str(folder / "hfaccel" / "__init__.py")
    assert seen["arena"] is True
    for text in ("the native part is missing", "4 KiB pages", "install a C compiler"):
        assert text in seen["missing"]
    assert seen["outcomes"]["allocator"] == [False, seen["missing"]]
    assert seen["doctor"] == "warning"


def test_without_the_extensions_models_work_as_they_did(used):
    _, seen = used
    assert seen["backend"] == "" and seen["difference"] == 0
    assert "the native part is missing" in " ".join(seen["printed"].split())
    assert seen["restored"] == "BertModel" and seen["empty"] == [1024, 1024]
