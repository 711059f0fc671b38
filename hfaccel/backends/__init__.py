"""Backends: ways to compute a model. The registry is a list.

"auto" takes the first that can run without preparation; those that need some are measured first.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from hfaccel.backends.base import Backend, Options
from hfaccel.backends.eager import EagerBackend
from hfaccel.backends.engine import TorchBackend
from hfaccel.backends.inductor import InductorBackend
from hfaccel.backends.ipex import IpexBackend
from hfaccel.backends.onnxruntime import OnnxruntimeBackend
from hfaccel.backends.openvino import OpenvinoBackend
from hfaccel.errors import UsageError

__all__ = ["BACKENDS", "Backend", "Options", "by_name", "register"]

BACKENDS: list[Backend] = [
    TorchBackend(),
    OpenvinoBackend(),
    OnnxruntimeBackend(),
    InductorBackend(),
    IpexBackend(),
    EagerBackend(),
]


def register(backend: Backend) -> None:
    """Add a backend, or replace the one of that name."""
    BACKENDS[:] = [known for known in BACKENDS if known.name != backend.name] + [backend]


def by_name(name: str) -> Backend:
    """The backend of that name. Those of other packages are loaded when first asked for."""
    found = next((backend for backend in BACKENDS if backend.name == name), None)
    if found is not None:
        return found
    for entry in entry_points(group="hfaccel.backends", name=name):
        register(entry.load()())
        return by_name(name)
    others = [entry.name for entry in entry_points(group="hfaccel.backends")]
    known = ", ".join([*(backend.name for backend in BACKENDS), *others])
    raise UsageError(f"the backend must be auto or one of {known}, but got {name!r}")
