"""Where the tests of another project come from: the sdist of the installed version, and for what sdists lack
a checkout of its repository. Laid out below build/, which is not part of the repository."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

BUILD = Path(__file__).parents[2] / "build" / "upstream"
REPOSITORIES = {
    "transformers": "https://github.com/huggingface/transformers",
    "sentence-transformers": "https://github.com/huggingface/sentence-transformers",
}
MIXINS = {"transformers": ("test_modeling_common.py", "test_pipeline_mixin.py"), "sentence-transformers": ()}


def lay_out(library: str, checkout: Path | None) -> Path:
    """The folder in which to run pytest. `checkout`: needed the first time only."""
    folder = BUILD / f"{library}-{version(library)}"
    if not (folder / "tests" / "__init__.py").exists():
        if checkout is None or not (checkout / "tests" / "__init__.py").exists():
            sys.exit(_no_tests(library, checkout))
        shutil.rmtree(folder, ignore_errors=True)
        _copy(checkout, folder)
        _overlay(library, _sdist(library), folder)
    return folder


def _no_tests(library: str, checkout: Path | None) -> str:
    where = f"{checkout} has none" if checkout else "no checkout was given"
    return (
        f"The sdist of {library} holds a part of its tests, the rest must come from a checkout, but {where}; "
        f"run: git clone --depth 1 --branch v{version(library)} {REPOSITORIES[library]} FOLDER, "
        "and pass --checkout FOLDER"
    )


def _copy(checkout: Path, folder: Path) -> None:
    for name in ("tests", "utils"):
        if (checkout / name).exists():
            shutil.copytree(checkout / name, folder / name)
    for name in ("conftest.py", "pyproject.toml"):
        if (checkout / name).exists():
            shutil.copy(checkout / name, folder / name)


def _sdist(library: str) -> Path:
    wanted, into = f"{library}=={version(library)}", BUILD / "sdist"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", library]
    subprocess.run([*command, "--dest", str(into), wanted], check=True)
    (archive,) = into.glob(f"{library.replace('-', '?')}-{version(library)}.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(into, filter="data")
    return into / archive.name.removesuffix(".tar.gz")


def _overlay(library: str, sdist: Path, folder: Path) -> None:
    """What models' tests inherit from is the installed version's own, whatever version the checkout has."""
    for name in MIXINS[library]:
        shutil.copy(sdist / "tests" / name, folder / "tests" / name)
    if library == "transformers":  # its tests read the sources that lie beside them
        (folder / "src").mkdir()
        (folder / "src" / "transformers").symlink_to(sdist / "src" / "transformers")
