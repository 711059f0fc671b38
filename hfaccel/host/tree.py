"""The one way in which hfaccel reads /sys, /proc and other system files: of this machine, below a folder, or
from a captured host. A tree remembers what was read, so a capture holds exactly what the facts came from."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

MAX_DIGITS = 18  # more is noise, and Python refuses to convert thousands of digits
MAX_CPUS = 1 << 16  # far above any machine; a list that names more is noise, not a CPU list


class Tree:
    """The files of a host. `root`: "/" for this machine; a folder or a captured file for another host.

    Reading never raises for what a host lacks or forbids: the answer is None, and `problems` has a line for
    each file that is there but cannot be used.
    """

    def __init__(self, root: str | Path = "/") -> None:
        self.root = str(root)
        self.is_live = self.root == "/"
        self.problems: list[str] = []
        self.seen: dict[str, str] = {}  # path -> the part that was read
        self._contents: dict[str, str | None] = {}  # path -> the whole content
        self._kept: dict[str, set[int]] = {}  # path -> numbers of the lines that were kept
        # os.path, not pathlib, in this file: on large hosts hfaccel-run reads a thousand small files.
        self._captured = _parse(self.root) if os.path.isfile(self.root) else None  # noqa: PTH113
        self._prefix = self.root.rstrip("/")

    def text(self, absolute: str) -> str | None:
        content = self._read(absolute)
        if content is None:
            return None
        self.seen[absolute] = content
        return content.strip()

    def lines(self, absolute: str, keep: Callable[[str], bool] | None = None) -> list[str]:
        """The lines of a file, or those that `keep` accepts; a capture holds no others."""
        lines = (self._read(absolute) or "").splitlines()
        kept = [number for number, line in enumerate(lines) if keep is None or keep(line)]
        if lines:  # two readers of one file may keep different lines of it
            known = self._kept.setdefault(absolute, set())
            known.update(kept)
            self.seen[absolute] = "\n".join(lines[number] for number in sorted(known))
        return [lines[number] for number in kept]

    def number_after(self, absolute: str, name: str) -> int | None:
        """The number that follows `name` in a file such as /proc/meminfo; None where there is none."""
        for line in self.lines(absolute, lambda line: name in line):
            words = line.partition(name)[2].split()
            if words and is_number(words[0]):
                return int(words[0])
        return None

    def integer(self, absolute: str) -> int | None:
        text = self.text(absolute)
        if text is None:
            return None
        if not is_number(text.removeprefix("-")):
            self.problem(absolute, f"an integer was expected, but it holds {text[:40]!r}")
            return None
        return int(text)

    def numbers(self, absolute: str) -> tuple[int, ...] | None:
        """The numbers of a file that holds a list such as `0-3,8`."""
        text = self.text(absolute)
        if text is None:
            return None
        try:
            return parse_number_list(text)
        except ValueError as error:
            self.problem(absolute, str(error))
            return None

    def names(self, folder: str, pattern: str) -> list[str]:
        """Names in a folder that match a pattern with one `*`, sorted."""
        start, _, end = pattern.partition("*")  # fnmatch would import re, which takes 5 ms
        return sorted(name for name in self._list(folder) if name.startswith(start) and name.endswith(end))

    def has_file(self, absolute: str) -> bool:
        if self._captured is not None:
            found = absolute in self._captured
        else:
            found = os.path.isfile(self._prefix + absolute)  # noqa: PTH113
        if found:
            self.seen.setdefault(absolute, "")
        return found

    def probe(self, name: str, ask: Callable[[], str]) -> str:
        """What no file says: `ask()` on this machine; the file /probes/NAME in a capture."""
        absolute = f"/probes/{name}"
        if not self.is_live:
            return self.text(absolute) or ""
        self.seen[absolute] = answer = ask()
        return answer

    def problem(self, absolute: str, what: str) -> None:
        self.problems.append(f"{absolute}: {what}")

    def _read(self, absolute: str) -> str | None:
        if absolute not in self._contents:
            self._contents[absolute] = self._load(absolute)
        return self._contents[absolute]

    def _load(self, absolute: str) -> str | None:
        if self._captured is not None:
            return self._captured.get(absolute)
        try:
            with open(self._prefix + absolute, encoding="utf-8", errors="replace") as file:  # noqa: PTH123
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.problem(absolute, f"cannot be read ({error.strerror})")
            return None
        except ValueError:  # a null byte in the path, which comes from a damaged /proc/self/cgroup
            self.problem(absolute.replace("\0", "?"), "cannot be read (it is no path)")
            return None

    def _list(self, folder: str) -> set[str]:
        if self._captured is not None:
            inside = (path[len(folder) + 1 :] for path in self._captured if path.startswith(f"{folder}/"))
            return {name.partition("/")[0] for name in inside}
        try:
            return set(os.listdir(self._prefix + folder))  # noqa: PTH208
        except (FileNotFoundError, NotADirectoryError):
            return set()
        except (OSError, ValueError) as error:
            self.problem(folder.replace("\0", "?"), f"cannot be listed ({error})")
            return set()


# A captured host is a text file, which people can read before they send it:
#
#   ==> /sys/devices/system/cpu/online <==
#   0-7
#
# `head -v -n 1000 FILES` prints the same.


def capture(tree: Tree) -> str:
    """What was read through `tree`, as text that `Tree` can read."""
    return "".join(f"==> {path} <==\n{content.rstrip()}\n\n" for path, content in sorted(tree.seen.items()))


def is_capture(path: str | Path) -> bool:
    return bool(_parse(str(path)))


def _parse(path: str) -> dict[str, str]:
    files: dict[str, str] = {}
    name = ""
    lines: list[str] = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("==> /") and line.endswith(" <=="):
            files[name] = "\n".join(lines)
            name, lines = line[4:-4], []
        else:
            lines.append(line)
    files[name] = "\n".join(lines)
    files.pop("")  # a comment before the first name
    return files


def is_number(text: str) -> bool:
    """Whether `text` is a natural number of sane length."""
    return text.isdecimal() and len(text) <= MAX_DIGITS


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


def format_number_list(numbers: tuple[int, ...]) -> str:
    """(0, 1, 2, 3, 8) -> `0-3,8`; the numbers ascend."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
