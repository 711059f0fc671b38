"""A model's tensors side by side in one region of memory: where each goes, copied there, put over it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfaccel.memory.arena import ALIGNMENT, HUGE_PAGE, padded
from hfaccel.memory.pack import is_plain
from hfaccel.portable import affinity
from hfaccel.threads import Pool

PAGE = 4096  # bytes
CHUNK = 4096  # pages that one thread sums at a time: numpy's working memory stays in the cache


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a region the bytes of a model's tensor are."""

    tensor: torch.Tensor
    offset: int  # bytes

    @property
    def held(self) -> torch.Tensor:
        """The tensor that has the bytes: a packed weight's memory, or the tensor itself."""
        return held(self.tensor)

    def over(self, region: torch.Tensor) -> torch.Tensor:
        """What has the bytes, over a region that holds them."""
        return view(region, self.offset, self.held.dtype, self.held.shape, self.held.stride())

    def put(self, region: torch.Tensor) -> None:
        """Let the tensor, whose identity stays, be over the region."""
        found = self.over(region)
        if self.held is not self.tensor:
            vars(self.tensor)["memory"] = found
            return
        with torch.no_grad():
            self.tensor.data = found


@dataclass(frozen=True, eq=False)
class Layout:
    """Where all tensors of a model go. Tensors that overlap (ties, views) still do so in the region."""

    places: tuple[Place, ...]
    pieces: tuple[tuple[torch.Tensor, int], ...]  # bytes to copy, each with its offset
    size: int  # bytes, a multiple of a huge page
    left: int  # tensors that are not in it: sparse, on another device, of a class of their own

    def write(self, region: torch.Tensor) -> None:
        """Copy all bytes into a region of `size` bytes that was zero before."""
        for source, offset in self.pieces:
            region[offset : offset + source.numel()].copy_(source)

    def put(self, region: torch.Tensor) -> None:
        for place in self.places:
            place.put(region)


def held(tensor: torch.Tensor) -> torch.Tensor:
    """What has the bytes of a tensor of a model: for a packed weight, the tensor that it names."""
    memory = vars(tensor).get("memory")
    return memory if isinstance(memory, torch.Tensor) else tensor


def view(
    region: torch.Tensor, offset: int, dtype: torch.dtype, shape: Iterable[int], stride: Iterable[int]
) -> torch.Tensor:
    """A tensor over the bytes of a region from `offset` on. Raises RuntimeError where they do not suffice."""
    rest = region[offset : offset + (region.numel() - offset) // dtype.itemsize * dtype.itemsize]
    return torch.as_strided(rest.view(dtype), tuple(shape), tuple(stride))


def lay_out(model: nn.Module) -> Layout:
    """Where a model's parameters and buffers go in one region, in the order in which they lie now."""
    tensors = [*model.parameters(), *model.buffers()]
    mine = [tensor for tensor in tensors if is_plain(held(tensor))]
    places = [Place(tensor, 0) for tensor in mine if held(tensor).numel() == 0]
    pieces: list[tuple[torch.Tensor, int]] = []
    used = 0
    for storage, inside in _by_storage(mine):
        for start, end, overlapping in _merged(inside):
            offset = padded(used) + (storage.data_ptr() + start) % ALIGNMENT
            pieces.append((storage[start:end], offset))
            places += [Place(tensor, offset + low - start) for tensor, low in overlapping]
            used = offset + end - start
    return Layout(tuple(places), tuple(pieces), -(-used // HUGE_PAGE) * HUGE_PAGE, len(tensors) - len(mine))


_Span = tuple[int, int, torch.Tensor]  # first byte in the storage, end, and the tensor


def _by_storage(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[torch.Tensor, list[_Span]]]:
    """Each storage's bytes, and what lies in it; tensors without a byte have nothing to place."""
    found: dict[tuple[int, int], tuple[torch.Tensor, list[_Span]]] = {}
    for tensor in tensors:
        bytes_of = held(tensor)
        if bytes_of.numel() == 0:
            continue
        storage = bytes_of.untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8).set_(storage)
        start = int(bytes_of.storage_offset()) * bytes_of.element_size()
        steps = zip(bytes_of.shape, bytes_of.stride(), strict=True)
        last = sum(int(size - 1) * int(step) for size, step in steps)
        end = int(start + (last + 1) * bytes_of.element_size())
        found.setdefault((storage.data_ptr(), storage.nbytes()), (whole, []))[1].append((start, end, tensor))
    yield from found.values()


def _merged(spans: list[_Span]) -> list[tuple[int, int, list[tuple[torch.Tensor, int]]]]:
    """Ranges that share no byte, each with the tensors in it and where they begin."""
    merged: list[tuple[int, int, list[tuple[torch.Tensor, int]]]] = []
    for start, end, tensor in sorted(spans, key=lambda span: span[:2]):
        if merged and start < merged[-1][1]:
            low, high, inside = merged[-1]
            merged[-1] = (low, max(high, end), [*inside, (tensor, start)])
        else:
            merged.append((start, end, [(tensor, start)]))
    return merged


def digest(region: torch.Tensor) -> str:
    """A checksum of a region of whole pages: a hash of the sums of the 64-bit words of each page.

    It finds what storage and copying do to a file: changed bits, pages missing, of another file, or at
    another place. It runs at the speed of memory; a hash of every byte would take longer than all the rest
    of loading. It is no defence against somebody who can write to the file and means to deceive, but all
    that is in a file of weights is numbers. Computed by threads that are gone afterwards: torch's own would
    stay, and a server that forks its workers later would fork with threads.
    """
    words: Any = region.numpy().view("int64").reshape(-1, PAGE // 8)
    chunks = [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
    found = hashlib.blake2b(digest_size=16)
    with Pool(min(8, len(affinity())), "hfaccel-digest") as threads:
        for sums in [threads.submit(functools.partial(chunk.sum, axis=1)) for chunk in chunks]:
            found.update(sums.result().tobytes())
    return found.hexdigest()
