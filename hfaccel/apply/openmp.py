"""The OpenMP runtime that torch computes with, and MKL beside it, through their C functions."""

from __future__ import annotations

import ctypes
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
    torch = sys.modules.get("torch")
    if torch is not None:
        yield ctypes.CDLL(torch._C.__file__)


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
