"""What must happen inside a program while it runs: after an import, around the start of a child, at a fork.

Each function is called once, changes the running interpreter and says how in its docstring. Imports no
torch, and nothing that the programs of hfaccel-run would have to wait for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing alone takes 5 ms
    from importlib.machinery import ModuleSpec
    from typing import Any

    Action = Callable[[], object]


# After an import


def after_import(module: str, action: Action) -> None:
    """Run `action` as soon as `module` is imported; now, if it is already."""
    if module in sys.modules:
        action()
        return
    finder = next((finder for finder in sys.meta_path if isinstance(finder, _Finder)), None)
    if finder is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    finder.actions.setdefault(module, []).append(action)


class _Finder:
    """Finds nothing by itself: it lets the others find the modules that are waited for."""

    def __init__(self) -> None:
        self.actions: dict[str, list[Action]] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(name, path, target) for finder in others if hasattr(finder, "find_spec"))
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            self._act_after(spec.loader, name)
        return spec

    def _act_after(self, loader: Any, name: str) -> None:
        """The loader stays what it is, so that inspect and importlib.resources see nothing new."""
        load = loader.exec_module

        def exec_module(module: Any) -> None:
            loader.exec_module = load
            load(module)
            for action in self.actions.pop(name, []):
                action()

        loader.exec_module = exec_module


# Affinity

BINDING = ("KMP_AFFINITY", "OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY")


def keep_affinity_over_import(module: str = "torch") -> None:
    """Give the main thread its mask back after `module` is imported.

    With one of BINDING set, an OpenMP runtime moves the thread that loads it to one CPU, and everything
    that this thread starts later inherits that.
    """
    mask = os.sched_getaffinity(0)
    if any(os.environ.get(name) for name in BINDING):
        after_import(module, lambda: os.sched_setaffinity(0, mask))


def give_children_affinity(mask: set[int]) -> None:
    """Start child processes with this mask and not with the one that the program was bound to.

    A child inherits the mask of the thread that starts it, so that thread has the other mask meanwhile.
    Covers fork, subprocess, posix_spawn, system and multiprocessing.
    """
    import _posixsubprocess

    def in_child() -> None:
        os.sched_setaffinity(0, mask)

    def with_mask(start: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            own = os.sched_getaffinity(0)
            os.sched_setaffinity(0, mask)
            try:
                return start(*arguments, **keywords)
            finally:
                os.sched_setaffinity(0, own)

        wrapped.__wrapped__ = start  # type: ignore[attr-defined]
        return wrapped

    os.register_at_fork(after_in_child=in_child)
    for owner, name in (
        (_posixsubprocess, "fork_exec"),
        (os, "posix_spawn"),
        (os, "posix_spawnp"),
        (os, "system"),
    ):
        setattr(owner, name, with_mask(getattr(owner, name)))


# Forks

FORKED = (
    "hfaccel: this process forks after torch has started its threads. A child has none of them, and GNU's "
    "OpenMP would wait for them for ever, so it computes with one thread. Start children with the spawn "
    "method, or load the model in them (gunicorn: without --preload)"
)


def survive_forks() -> None:
    """Let a forked child of a process with OpenMP threads compute with one thread instead of hanging.

    Says so on standard error, once. Intel's runtime starts new threads in the child by itself.
    """
    state = {"threads": False, "told": False}

    def before() -> None:
        state["threads"] = "torch" in sys.modules and _has_openmp_threads()
        if state["threads"] and not state["told"]:
            state["told"] = True
            print(FORKED, file=sys.stderr, flush=True)

    def in_child() -> None:
        if state["threads"]:
            sys.modules["torch"].set_num_threads(1)

    os.register_at_fork(before=before, after_in_child=in_child)


def _has_openmp_threads() -> bool:
    """Whether there are threads that Python did not start, and they are not Intel's."""
    import threading

    try:
        if len(os.listdir("/proc/self/task")) <= threading.active_count():  # noqa: PTH208
            return False
        with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
            return "libiomp5" not in maps.read()
    except OSError:
        return False  # no /proc: nothing to go by
