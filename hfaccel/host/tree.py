"""The one way hfaccel reads /sys, /proc and other system files: below a root that a test may choose."""

from __future__ import annotations

from pathlib import Path


class Tree:
    """Files of a host, below `root`.

    Reading never raises for what a host lacks or forbids: the answer is None, and what was there but
    could not be used is kept in `problems`, one line each.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)
        self.problems: list[str] = []

    @property
    def is_live(self) -> bool:
        return self.root == Path("/")

    def path(self, absolute: str) -> Path:
        return self.root / absolute.lstrip("/")

    def text(self, absolute: str) -> str | None:
        try:
            return self.path(absolute).read_text(encoding="utf-8", errors="replace").strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.problem(absolute, f"cannot be read ({error.strerror})")
            return None
        except ValueError:  # a null byte in the path, which came out of a damaged /proc/self/cgroup
            self.problem(absolute.replace("\0", "?"), "cannot be read (it is no path)")
            return None

    def integer(self, absolute: str) -> int | None:
        text = self.text(absolute)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            self.problem(absolute, f"an integer was expected, but it holds {text[:40]!r}")
            return None

    def numbers(self, absolute: str) -> tuple[int, ...] | None:
        """A list in the kernel's form: `0-3,8` is (0, 1, 2, 3, 8)."""
        text = self.text(absolute)
        if text is None:
            return None
        try:
            return parse_number_list(text)
        except ValueError as error:
            self.problem(absolute, str(error))
            return None

    def children(self, absolute: str, pattern: str) -> list[Path]:
        try:
            return sorted(self.path(absolute).glob(pattern))
        except OSError as error:
            self.problem(absolute, f"cannot be listed ({error.strerror})")
            return []

    def problem(self, absolute: str, what: str) -> None:
        self.problems.append(f"{absolute}: {what}")


MAX_DIGITS = 18  # more is noise, and Python refuses to convert thousands of digits


def is_number(text: str) -> bool:
    """Whether `text` is a natural number of sane length."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


MAX_CPUS = 1 << 16  # far above any machine; a list that names more is noise, not a CPU list


def parse_number_list(text: str) -> tuple[int, ...]:
    """`0-3,8` -> (0, 1, 2, 3, 8); an empty text is an empty list. ValueError for anything else."""
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not is_number(first) or (dash and not is_number(last)):
            raise ValueError(f"a list such as 0-3,8 was expected, but it holds {text[:40]!r}")
        low, high = int(first), int(last or first)
        if not low <= high < MAX_CPUS:
            raise ValueError(f"`low <= high < {MAX_CPUS}` must hold in a list, but it holds {part[:40]!r}")
        numbers.update(range(low, high + 1))
    return tuple(sorted(numbers))
