"""The C extension, or the reason why there is none.

The package installs without a compiler. Then `arena` is None and `MISSING` says what that costs; every
caller goes through here, so that the sentence exists once.
"""

from __future__ import annotations

from typing import Any, Protocol


class Region(Protocol):
    """Anonymous memory, aligned to and advised for huge pages; freed when the last tensor in it goes.

    It has the buffer protocol, so that torch.frombuffer makes tensors of it."""

    @property
    def address(self) -> int: ...
    @property
    def pages(self) -> str: ...
    @property
    def refused(self) -> tuple[tuple[str, int], ...]: ...
    def __len__(self) -> int: ...
    def populate(self, offset: int, size: int) -> None: ...


class Arena(Protocol):
    """What hfaccel._arena offers. Sizes and addresses are bytes; failures raise OSError."""

    HUGE_PAGE_SIZE: int

    def Region(self, size: int, pages: str = "thp", node: int = -1, locked: bool = False) -> Region: ...
    def make_huge(self, address: int, size: int, collapse: bool) -> int: ...
    def reserve_heap(self, size: int) -> int: ...
    def trim_heap(self) -> bool: ...
    def smaps(self, address: int, size: int) -> tuple[int, int, int]: ...
    def malloc_owner(self) -> str: ...
    def mallopt(self, option: int, value: int) -> bool: ...
    def set_memory_policy(self, mode: str, nodes: tuple[int, ...]) -> None: ...
    def memory_policy(self) -> tuple[str, tuple[int, ...]]: ...
    def end_with_parent(self, signal: int) -> None: ...
    def saved_state(self) -> int: ...
    def requestable_state(self) -> int: ...


def _load() -> tuple[Any, str]:
    try:
        from hfaccel import _arena
    except ImportError as error:
        return None, (
            f"the native part is missing ({error}): weights stay on 4 KiB pages and glibc keeps its "
            "defaults; install a C compiler and python3-dev, then reinstall hfaccel"
        )
    return _arena, ""


arena: Arena | None
arena, MISSING = _load()
