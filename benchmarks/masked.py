"""Copies of packages whose libraries see a CPU with AVX2 and no more, whatever the CPU has.

Some libraries ask the CPU and read no variable. In a copy of such a library `ud2` takes the place of each
`cpuid`, and a handler of the signal that follows (masked.c) answers without AVX-512 and AMX. So they choose
what they would choose on an AVX2 machine. The handler runs only while they look; afterwards their code costs
what this CPU needs for it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

from environments import PEERS, ROOT, interpreter

MASKED = ROOT / "build" / "masked"
PACKAGES = ("openvino", "onnxruntime")
CPUID, UD2 = b"\x0f\xa2", b"\x0f\x0b"
SOURCE = Path(__file__).with_suffix(".c")
HANDLER = "masked.so"
# Python runs this file before anything else of a process with the folder in PYTHONPATH.
START = """import ctypes, os
ctypes.CDLL(os.path.join(os.path.dirname(__file__), {handler!r}))
"""
_INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\tcpuid", re.MULTILINE)
_SECTION = re.compile(r"^ *\d+ \S+ +[0-9a-f]+ +([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+) ", re.MULTILINE)


def variables() -> dict[str, str]:
    """The environment of a process that imports the copies, which are made on first use."""
    done = MASKED / "done"
    if not done.exists() or done.stat().st_mtime < max((PEERS / "installed").stat().st_mtime, newest()):
        shutil.rmtree(MASKED, ignore_errors=True)
        MASKED.mkdir(parents=True)
        build_handler(MASKED)
        for package in PACKAGES:
            copy_masked(_folder(package), MASKED / package)
        done.touch()
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(MASKED), os.environ.get("PYTHONPATH"))))}


def newest() -> float:
    return max(path.stat().st_mtime for path in (SOURCE, Path(__file__)))


def build_handler(folder: Path) -> None:
    """The handler, and what loads it when Python starts."""
    compiler = ["cc", "-O1", "-Wall", "-Wextra", "-shared", "-fPIC", str(SOURCE), "-o", str(folder / HANDLER)]
    subprocess.run(compiler, check=True)
    (folder / "sitecustomize.py").write_text(START.format(handler=HANDLER))


def copy_masked(package: Path, copy: Path) -> None:
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    for library in copy.rglob("*.so*"):
        if not library.is_symlink():
            library.write_bytes(masked(library))


def masked(library: Path) -> bytes:
    """The library with another instruction for each cpuid. Bytes alone do not tell one: objdump does."""
    code = _objdump("--disassemble", "--no-show-raw-insn", library)
    sections = [
        (int(address, 16), int(offset, 16)) for address, offset in _SECTION.findall(_objdump("-h", library))
    ]
    content = bytearray(library.read_bytes())
    for match in _INSTRUCTION.finditer(code):
        address = int(match[1], 16)
        start, offset = max(section for section in sections if section[0] <= address)
        place = address - start + offset
        assert content[place : place + 2] == CPUID, f"{library}: no cpuid at {address:#x}"
        content[place : place + 2] = UD2
    return bytes(content)


def _objdump(*arguments: str | Path) -> str:
    return subprocess.run(["objdump", *arguments], check=True, capture_output=True, text=True).stdout


def _folder(package: str) -> Path:
    find = f"import importlib.util as u; print(u.find_spec({package!r}).submodule_search_locations[0])"
    found = subprocess.run([interpreter(package), "-c", find], check=True, capture_output=True, text=True)
    return Path(found.stdout.strip())
