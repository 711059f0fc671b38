"""Real texts that every Python installation has: the docstrings of its library and packages."""

from __future__ import annotations

import importlib
import inspect
import random
from types import ModuleType

# fmt: off
MODULES = (
    "argparse", "asyncio", "collections", "concurrent.futures", "configparser", "csv", "ctypes",
    "datetime", "decimal", "email.message", "fractions", "functools", "heapq", "http.client",
    "inspect", "io", "itertools", "json", "logging", "math", "multiprocessing", "numpy", "os",
    "pathlib", "pickle", "random", "re", "shutil", "socket", "sqlite3", "ssl", "statistics",
    "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "tokenizers", "torch",
    "torch.nn", "typing", "unittest", "urllib.request", "uuid", "xml.dom", "zipfile",
)
# fmt: on


def texts(count: int, *, least: int = 68, seed: int = 0) -> list[str]:
    """`count` different docstrings of at least `least` characters, in a random order that repeats.

    512 of at least 68 characters, cut at 256 tokens, are 127 tokens long on average.
    """
    found: dict[str, None] = {}
    for name in MODULES:
        for text in _docstrings(importlib.import_module(name)):
            if len(text) >= least:
                found[text] = None
    ordered = sorted(found)
    if len(ordered) < count:
        raise ValueError(f"`count <= {len(ordered)}` must hold for this installation, but got {count}")
    return random.Random(seed).sample(ordered, count)


def _docstrings(module: ModuleType) -> list[str]:
    members = [module, *(value for name, value in inspect.getmembers(module) if not name.startswith("_"))]
    classes = [value for value in members if inspect.isclass(value)]
    methods = [value for cls in classes for name, value in vars(cls).items() if not name.startswith("_")]
    documented = (getattr(value, "__doc__", None) for value in (*members, *methods))
    return [inspect.cleandoc(text) for text in documented if isinstance(text, str)]
