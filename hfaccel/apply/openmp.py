"""The OpenMP runtime that torch computes with, and MKL beside it, through their C functions."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any


def torch_function(name: str) -> Any:
    """The C function that torch's own calls of this name reach; None where there is none.

    That is the first in the program's global scope, where preloaded libraries stand in front, and otherwise
    the one among torch's own dependencies. A library that is mapped but serves another one is neither.
    """
    return next(filter(None, (getattr(scope, name, None) for scope in _scopes())), None)


def _scopes() -> Iterator[ctypes.CDLL]:
    if sys.platform == "win32":  # it has no global scope, and its libraries export none of these functions
        return
    yield ctypes.CDLL(None)
    extension = sys.modules.get("torch._C")  # not there for another module that is called torch
    if extension is not None and extension.__file__:
        yield ctypes.CDLL(extension.__file__)


def runtime() -> ctypes.CDLL | None:
    """The OpenMP library that serves torch, out of all that are mapped; None where torch has none."""
    function = torch_function("omp_get_max_threads")
    if function is None:
        return None
    found = _Place()
    ctypes.CDLL(None).dladdr(ctypes.cast(function, ctypes.c_void_p), ctypes.byref(found))
    return ctypes.CDLL(os.fsdecode(found.file))


class _Place(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


# Forks

END_THREADS = "omp_pause_resource_all"  # of OpenMP 5.0: GCC 9
alone = ""  # why this process, a forked child, can only compute with one thread


@functools.cache
def let_forks_end_threads() -> str:
    """Let every fork of libc first end the OpenMP threads of the thread that forks.

    A child has that thread alone. It then starts OpenMP threads as a new process does, and so does the
    parent when it computes again. Returns why that cannot be done; "" where it is, or need not be.
    """
    library = runtime()
    if library is None or hasattr(library, "__kmpc_fork_call"):
        return ""  # Intel's and LLVM's start anew in a child by themselves
    register = getattr(ctypes.CDLL(None), "__register_atfork", None)
    end = getattr(library, END_THREADS, None)
    if register is None or end is None:
        missing = "no __register_atfork" if register is None else f"no {END_THREADS}, which GCC 9 brought"
        return f"its OpenMP runtime cannot be restarted (there is {missing})"
    # The handler is GNU's function itself: Python cannot run there, because a program in C that forks may not
    # hold the interpreter's lock. It ignores its argument, so that it can be called without one.
    register(ctypes.cast(end, ctypes.c_void_p), None, None, None)
    return ""


# The number of threads


def threads_set() -> int:
    """The number that the program has given to torch.set_num_threads; 0 where it has given none.

    torch passes the number on to MKL's setting for the thread, which tells what it was when it is replaced.
    """
    torch = sys.modules["torch"]
    torch.get_num_threads()  # a thread takes the program's number over at this question
    exchange = torch_function("MKL_Set_Num_Threads_Local")
    if exchange is None:
        return 0
    number: int = exchange(0)
    exchange(number)
    return number
