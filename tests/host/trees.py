"""Hosts as tests want them: captured ones, and made up of a few files in either form, folder or file."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from hfaccel.host.tree import Tree

HOSTS = Path(__file__).parent.parent / "hosts"
NAMES = sorted(path.stem for path in HOSTS.glob("*.txt"))


def one_per_core(topology, mask):
    """The first CPU in the mask of every core."""
    return tuple(sorted(cpus[0] for cpus in topology.cores(mask)))


def write_folder(root, files):
    for name, content in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_bytes(content))


def write_file(root, files):
    sections = (f"==> {name} <==\n".encode() + as_bytes(content) for name, content in files.items())
    root.write_bytes(b"".join(section + b"\n" for section in sections))


def as_bytes(content):
    return content.encode() if isinstance(content, str) else content


FORMS = {"folder": write_folder, "file": write_file}


def tree_maker(form, folder):
    """A function that makes a tree of {path: content}; a file whose content is None is not there."""
    numbers = itertools.count()

    def make(files):
        root = folder / f"host{next(numbers)}"
        if form == "folder":
            root.mkdir()
        FORMS[form](root, {name: content for name, content in files.items() if content is not None})
        return Tree(root)

    return make


def files_in(captured):
    """The files in a captured file, by a parser of the tests' own: {path: content}."""
    _, *parts = re.split(rb"^==> (/.*) <==\n", captured.read_bytes(), flags=re.MULTILINE)
    return {
        name.decode(): content.rstrip() + b"\n" for name, content in zip(parts[::2], parts[1::2], strict=True)
    }
