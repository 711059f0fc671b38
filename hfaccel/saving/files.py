"""The files of a saved model: what is written, how it replaces what was there, and how damage is found.

    manifest.json      what the model is made of, and the size and checksum of its weights
    weights-ID.bin     the weights, as they lie in memory; ID is the beginning of their checksum
    source.json        where the weights come from, so that the model can be made again

The manifest is the last to be renamed into place: until then the old model is the valid one, and afterwards
the new one. All are checked before anything in them is used, and they hold numbers and names only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from hfaccel.errors import HfaccelError
from hfaccel.memory import Layout, digest, map_bytes
from hfaccel.portable import LOCK_EX, flock

MANIFEST, SOURCE, WEIGHTS = "manifest.json", "source.json", "weights-*.bin"
TEMPORARY = ".new-"  # prefix of a file that is being written

Document = dict[str, Any]  # of JSON: whatever it holds


class Unusable(HfaccelError):
    """Saved files cannot be used, and why."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """No other process writes to the folder meanwhile. Those that load need no lock."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(descriptor, LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# Documents: JSON with a checksum over everything else, in one spelling, so that every byte counts


def encode(content: Document) -> bytes:
    checksum = hashlib.sha256(_spelled(content)).hexdigest()
    return _spelled({**content, "checksum": checksum})


def decode(document: bytes) -> Document:
    """Raises Unusable for anything but what `encode` returned."""
    try:
        content = json.loads(document)
        checksum = content.pop("checksum")
        same = document == encode(content) and isinstance(checksum, str)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"it is damaged ({type(error).__name__})") from None
    if not same:
        raise Unusable("it is damaged (its checksum is another)")
    return dict(content)


def _spelled(content: Document) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def read_document(path: Path) -> Document:
    try:
        return decode(path.read_bytes())
    except OSError as error:
        raise Unusable(f"{path.name} cannot be read ({error.strerror})") from None
    except Unusable as error:
        raise Unusable(f"{path.name}: {error}") from None


def write_document(path: Path, content: Document) -> None:
    with _replaced(path) as descriptor:
        _write_all(descriptor, encode(content), 0)


# Weights


def write_weights(folder: Path, layout: Layout) -> Document:
    """Write a model's bytes; returns what `read_weights` needs to find and check them."""
    temporary = folder / f"{TEMPORARY}weights"
    with _opened(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as descriptor:
        for source, offset in layout.pieces:  # not through a mapping: a full disk would end the process
            _write_all(descriptor, _raw(source), offset)
        os.ftruncate(descriptor, layout.size)
        os.fsync(descriptor)
        # Read from the disk again through a mapping that is advised, pages come into the cache as huge ones.
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        checksum = digest(map_bytes(descriptor, layout.size))
    name = WEIGHTS.replace("*", checksum[:16])
    temporary.rename(folder / name)
    return {"file": name, "size": layout.size, "digest": checksum}


def map_weights(folder: Path, weights: Document) -> torch.Tensor:
    """The weights' file as one region, not checked yet. Raises Unusable where it is missing or too short."""
    name = Path(weights["file"]).name
    try:
        with _opened(folder / name, os.O_RDONLY) as descriptor:
            size = os.fstat(descriptor).st_size
            if size != weights["size"]:
                raise Unusable(f"{name} must have {weights['size']} bytes, but has {size}")
            return map_bytes(descriptor, size)
    except OSError as error:
        raise Unusable(f"{name} cannot be mapped ({error.strerror})") from None


def check_weights(region: torch.Tensor, weights: Document) -> None:
    """Read all of it. Raises Unusable where a byte is not the one that was written."""
    if digest(region) != weights["digest"]:
        raise Unusable(f"{weights['file']} is damaged (its checksum is another)")


def remove_others(folder: Path, keep: str) -> None:
    """Weights of models saved here before, and what was not written to its end. Who has them mapped keeps
    them."""
    for path in [*folder.glob(WEIGHTS), *folder.glob(f"{TEMPORARY}*")]:
        if path.name != keep:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[int]:
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
        yield descriptor
        os.fsync(descriptor)
    temporary.rename(path)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _raw(tensor: torch.Tensor) -> memoryview:
    array: Any = tensor.numpy()
    return memoryview(array)


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
