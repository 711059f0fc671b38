"""A model's tensors side by side in one region of memory: where each one goes, and how it is moved there."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from hfaccel.memory.arena import ALIGNMENT, HUGE_PAGE, padded
from hfaccel.memory.coverage import extent
from hfaccel.memory.pack import by_storage, held, is_plain
from hfaccel.portable import affinity
from hfaccel.threads import Pool

PAGE = 4096  # bytes
CHUNK = 4096  # pages that a thread sums at a time; few, so that NumPy's working memory stays in the cache


@dataclass(frozen=True, eq=False)
class Place:
    """Where in a region the bytes of a model's tensor lie."""

    tensor: torch.Tensor
    offset: int  # bytes

    @property
    def held(self) -> torch.Tensor:
        return held(self.tensor)

    def over(self, region: torch.Tensor) -> torch.Tensor:
        """A tensor like `held` over the bytes of a region."""
        return view(region, self.offset, self.held.dtype, self.held.shape, self.held.stride())

    def put(self, region: torch.Tensor) -> None:
        """Move the tensor, which keeps its identity, onto the region."""
        found = self.over(region)
        if self.held is not self.tensor:
            vars(self.tensor)["memory"] = found
            return
        with torch.no_grad():
            self.tensor.data = found


@dataclass(frozen=True, eq=False)
class Layout:
    """Where all tensors of a model go. Tensors that overlap (ties, views) overlap in the region as well."""

    places: tuple[Place, ...]
    pieces: tuple[tuple[torch.Tensor, int], ...]  # bytes to copy, each with its offset
    size: int  # bytes, a multiple of a huge page
    left: int  # tensors without a place: sparse, on another device, of another class

    def write(self, region: torch.Tensor) -> None:
        """Copy all bytes into a region of `size` zero bytes."""
        for source, offset in self.pieces:
            region[offset : offset + source.numel()].copy_(source)

    def put(self, region: torch.Tensor) -> None:
        for place in self.places:
            place.put(region)


def view(
    region: torch.Tensor, offset: int, dtype: torch.dtype, shape: Iterable[int], stride: Iterable[int]
) -> torch.Tensor:
    """A tensor over the bytes of a region from `offset` on. Raises RuntimeError for too small a region."""
    rest = region[offset : offset + (region.numel() - offset) // dtype.itemsize * dtype.itemsize]
    return torch.as_strided(rest.view(dtype), tuple(shape), tuple(stride))


def lay_out(model: nn.Module) -> Layout:
    """Where a model's parameters and buffers go in one region."""
    tensors = [*model.parameters(), *model.buffers()]
    mine = [tensor for tensor in tensors if is_plain(held(tensor))]
    filled = [tensor for tensor in mine if held(tensor).numel()]
    places = [Place(tensor, 0) for tensor in mine if held(tensor).numel() == 0]
    pieces: list[tuple[torch.Tensor, int]] = []
    used = 0
    for storage in by_storage(filled):
        for start, end, overlapping in _merged(storage.tensors):
            offset = padded(used) + (storage.bytes.data_ptr() + start) % ALIGNMENT
            pieces.append((storage.bytes[start:end], offset))
            places += [Place(tensor, offset + low - start) for tensor, low in overlapping]
            used = offset + end - start
    return Layout(tuple(places), tuple(pieces), -(-used // HUGE_PAGE) * HUGE_PAGE, len(tensors) - len(mine))


def _merged(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int, list[tuple[torch.Tensor, int]]]]:
    """Byte ranges of a storage that do not overlap, each with its tensors and where these begin."""
    spans = []
    for tensor in tensors:
        start = int(held(tensor).storage_offset()) * held(tensor).element_size()
        spans.append((start, start + extent(held(tensor)), tensor))
    merged: list[tuple[int, int, list[tuple[torch.Tensor, int]]]] = []
    for start, end, tensor in sorted(spans, key=lambda span: span[:2]):
        if merged and start < merged[-1][1]:
            low, high, inside = merged[-1]
            merged[-1] = (low, max(high, end), [*inside, (tensor, start)])
        else:
            merged.append((start, end, [(tensor, start)]))
    return merged


def digest(region: torch.Tensor) -> str:
    """A checksum of a region of whole pages: a hash of the sum of each page's 64-bit words.

    The checksum detects damage by storage and copying: changed bits, and pages that are missing, misplaced or
    from another file. Summing runs at the speed of memory, while a hash of every byte would take longer than
    the rest of loading. The checksum does not protect against deliberate changes; but a file of weights holds
    numbers only. The threads of this function end with it. torch's threads would stay, and a server that
    forks its workers later would fork with running threads.
    """
    words = region.numpy().view("int64").reshape(-1, PAGE // 8)
    chunks = [words[start : start + CHUNK] for start in range(0, len(words), CHUNK)]
    found = hashlib.blake2b(digest_size=16)
    with Pool(min(8, len(affinity())), "hfaccel-digest") as threads:
        for sums in [threads.submit(functools.partial(chunk.sum, axis=1)) for chunk in chunks]:
            found.update(sums.result().tobytes())
    return found.hexdigest()
