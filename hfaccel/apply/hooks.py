"""What must happen inside a program while it runs: after an import, around the start of a child, at a fork.

Each function changes the running interpreter and says how in its docstring. Imports no torch, and nothing
that the programs of hfaccel-run would have to wait for.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable

from hfaccel.portable import affinity, set_affinity

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing alone takes 5 ms
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

    Action = Callable[[], object]
    SearchPath = Sequence[str] | None  # of a package
    Start = Callable[..., Any]  # of a child process


# After an import


def after_import(module: str, action: Action) -> None:
    """Run `action` as soon as `module` is imported; now, if it is already."""
    if _is_imported(module):
        action()
        return
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    finder.actions.setdefault(module, []).append(action)


_loaded: set[str] = set()  # modules whose code has run, as far as they were waited for


def _is_imported(name: str) -> bool:
    """Whether a module is there and complete; it is in sys.modules while it is being imported, too."""
    specification = getattr(sys.modules.get(name), "__spec__", None)
    being_imported = getattr(specification, "_initializing", False) and name not in _loaded
    return name in sys.modules and not being_imported


class _Finder:
    """Finds nothing by itself: it lets the others find the modules that are waited for."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, name: str, path: SearchPath, target: ModuleType | None = None) -> ModuleSpec | None:
        for waited in [waited for waited in self.actions if waited != name and _is_imported(waited)]:
            self.act(waited)  # it was half imported when it was asked for
        if name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next(filter(None, specs), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self)  # type: ignore[assignment]
        return spec

    def act(self, name: str) -> None:
        for action in self.actions.pop(name, []):
            action()


class _Loader:
    """Stands in for a module's loader until the module is loaded; then nothing of it is left."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> object:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> object:
        return self.loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        _loaded.add(module.__name__)
        self.finder.act(module.__name__)


# Affinity

BINDING = ("KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def keep_affinity_over_import(module: str = "torch") -> None:
    """Give the main thread its mask back after `module` is imported.

    With one of BINDING set, an OpenMP runtime moves the thread that loads it to one CPU, and everything
    that this thread starts later inherits that.
    """
    mask = affinity()
    if any(os.environ.get(name) for name in BINDING):
        after_import(module, lambda: _set_affinity(mask))


def _set_affinity(mask: set[int]) -> None:
    with contextlib.suppress(OSError):  # a container may forbid it, or have lost these CPUs meanwhile
        set_affinity(mask)


_children_mask: set[int] | None = None  # of child processes; None: they inherit their parent's
_wraps_starts = False


def give_children_affinity(mask: set[int] | None) -> None:
    """Start child processes with this mask and not with the one that the program was bound to; None undoes
    that.

    A child inherits the mask of the thread that starts it, so that thread has the other mask meanwhile.
    Covers fork, subprocess, posix_spawn, system and multiprocessing.
    """
    global _children_mask, _wraps_starts
    _children_mask = mask
    if mask is not None and not _wraps_starts:
        _wraps_starts = True
        _wrap_starts_of_children()


def _wrap_starts_of_children() -> None:
    import _posixsubprocess

    os.register_at_fork(after_in_child=_give_mask)
    _posixsubprocess.fork_exec = _with_mask(_posixsubprocess.fork_exec)
    if "subprocess" in sys.modules:  # it has a name of its own for the function
        vars(sys.modules["subprocess"])["_fork_exec"] = _posixsubprocess.fork_exec
    for name in ("posix_spawn", "posix_spawnp", "system"):
        setattr(os, name, _with_mask(getattr(os, name)))


def _with_mask(start: Start) -> Start:
    def wrapped(*arguments: object, **keywords: object) -> object:
        if _children_mask is None:
            return start(*arguments, **keywords)
        own = affinity()
        _set_affinity(_children_mask)
        try:
            return start(*arguments, **keywords)
        finally:
            _set_affinity(own)

    wrapped.__wrapped__ = start  # type: ignore[attr-defined]
    return wrapped


def _give_mask() -> None:
    if _children_mask is not None:
        _set_affinity(_children_mask)


# Forks

FORKED = (
    "hfaccel: this process was forked from one that had imported torch, and {problem}: it would wait for "
    "ever for threads that a child does not have. It computes with one thread; start children with the spawn "
    "method, or import torch in them (gunicorn: without --preload)"
)


_survives_forks = False


def survive_forks() -> None:
    """Let forked children compute with threads of their own, whoever forks them: Python or a server in C.

    A child has none of its parent's threads, and GNU's OpenMP would wait for them for ever. Where the
    runtime cannot be helped, a child computes with one thread, and says so on standard error. Nothing can
    undo this: libc keeps what runs at forks.
    """
    global _survives_forks
    if hasattr(os, "fork") and not _survives_forks:
        _survives_forks = True
        after_import("torch", _let_forks_end_threads)


def _let_forks_end_threads() -> None:
    from hfaccel.apply import openmp

    problem = openmp.let_forks_end_threads()
    if problem:
        os.register_at_fork(after_in_child=lambda: _compute_alone(FORKED.format(problem=problem)))


def _compute_alone(reason: str) -> None:
    from hfaccel.apply import openmp

    openmp.alone = reason
    print(reason, file=sys.stderr, flush=True)
    sys.modules["torch"].set_num_threads(1)
