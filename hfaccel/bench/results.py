"""The result file of a study: its format, what may be continued, and writing that never harms it."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from hfaccel.bench.setting import Setting
from hfaccel.bench.work import describe, work_of
from hfaccel.errors import HfaccelError, UsageError
from hfaccel.host import HostFacts
from hfaccel.plan import cpu_budget
from hfaccel.writing import replace_text

FORMAT = 1
Document: TypeAlias = dict[str, Any]  # a result file, or a cell of one
Identity = str
# A cell with another status is measured again when the study is continued.
FINAL = ("measured", "wrong", "skipped")
KNOWN_HOST = ("model", "cores", "kernel_set")  # what makes a host another one


class WriteError(HfaccelError):
    """The result file cannot be written; the former file is still there."""


def identity(work: Mapping[str, object], setting: Mapping[str, object]) -> Identity:
    """What two files' cells have in common if they measured the same."""
    values = [describe(work_of(work)), Setting.from_dict(setting).to_dict()]
    return json.dumps(values, sort_keys=True)


def identity_of(cell: Document) -> Identity:
    return identity(cell["work"], cell["setting"])


def new(subject: str, baseline: Setting, axes: Mapping[str, object], command: list[str]) -> Document:
    """A result without cells."""
    return {
        "format": FORMAT,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": {},
        "versions": {},
        "subject": subject,
        "axes": dict(axes),
        "baseline": baseline.to_dict(),
        "limits": None,
        "cells": [],
        "tuning": None,
    }


def host_of(facts: HostFacts) -> Document:
    """What a reader of the figures needs to know of the machine, and all that `hfaccel info` tells."""
    processor = facts.processor
    return {
        "model": processor.model_name or processor.vendor or "unknown",
        "cores": cpu_budget(facts).threads,
        "kernel_set": processor.kernel_sets[0] if processor.kernel_sets else "none",
        "memory_mib": facts.memory.total >> 20,
        "facts": facts.to_dict(),
    }


def read(path: str | Path) -> Document:
    """A result file. Raises UsageError for anything else, with what to do."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"a result must be a readable file, but {str(path)!r} is not ({error.strerror})"
        ) from None
    except ValueError as error:
        raise UsageError(
            f"a result must be JSON, but {str(path)!r} is not ({error}); name another file"
        ) from None
    if not isinstance(document, dict) or "format" not in document or "cells" not in document:
        raise UsageError(
            f"a result must be written by hfaccel bench, but {str(path)!r} is not; name another file"
        )
    if document["format"] != FORMAT:
        raise UsageError(
            f"a result must have format {FORMAT}, but {str(path)!r} has {document['format']!r}; use the "
            "version of hfaccel that wrote the file, or name another file to measure anew"
        )
    try:
        for cell in document["cells"]:
            identity_of(cell)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"a result must be written by hfaccel bench, but {str(path)!r} was changed since "
            f"({type(error).__name__}: {error}); measure anew, or name another file"
        ) from None
    return document


def continued(found: Document, wanted: Document, path: str | Path) -> Document:
    """`wanted` with the cells of the file `found`. Raises UsageError where they would not compare."""
    pairs = [("subject", found["subject"], wanted["subject"])]
    pairs += [(f"host's {name}", found["host"].get(name), wanted["host"].get(name)) for name in KNOWN_HOST]
    pairs += [
        (f"version of {name}", found["versions"].get(name), version)
        for name, version in wanted["versions"].items()
    ]
    pairs += [("baseline", found["baseline"], wanted["baseline"])]
    for what, before, now in pairs:
        if before != now:
            raise UsageError(
                f"a result file can be continued with the same {what}, but {str(path)!r} has {before!r} and "
                f"this study {now!r}; name another file with --json, or remove this one"
            )
    return {**wanted, "cells": list(found["cells"]), "limits": found["limits"] or wanted["limits"]}


def done(document: Document) -> set[Identity]:
    """The cells that are not measured again."""
    return {identity_of(cell) for cell in document["cells"] if cell["status"] in FINAL}


def put(document: Document, cell: Document) -> None:
    """Add a cell in the place of an earlier one of the same work and setting."""
    own = identity_of(cell)
    document["cells"] = [other for other in document["cells"] if identity_of(other) != own] + [cell]


def write(document: Document, path: str | Path) -> None:
    """Replace the file at once, or leave the former one. Raises WriteError."""
    text = json.dumps(document, indent=1, allow_nan=False)
    try:
        replace_text(path, f"{text}\n")
    except OSError as error:
        raise WriteError(
            f"results must be written to a file, but {str(path)!r} cannot be ({error.strerror}); what the "
            "file held before is kept: make room or name another file; the same command goes on from there"
        ) from None
