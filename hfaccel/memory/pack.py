"""Existing tensors moved next to each other onto huge pages, without anybody noticing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfaccel import native
from hfaccel.errors import ModelError
from hfaccel.memory.arena import COLOUR, HUGE_PAGE, Arena, Pages, check_node, padded
from hfaccel.memory.coverage import coverage, coverage_problem

ENOUGH = 0.98  # memory of which this share is on huge pages stays where it is
LARGE = 32 << 20  # bytes from which on the ends of a tensor, on small pages, do not matter


@dataclass(eq=False)
class _Storage:
    """One piece of memory and the tensors that look at it: several where weights are tied or are views."""

    bytes: torch.Tensor
    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Packed:
    """What pack_ did. Sizes in bytes."""

    moved: int  # copied into huge-page memory
    in_place: int  # whose pages became huge where they are: large tensors, files mapped by a loader
    left: int  # tensors that cannot be moved: packed already, sparse, on another device
    problem: str  # what the system refused; "" for nothing


def pack_(
    model_or_pipeline: Any, *, pages: Pages = "thp", numa_node: int | None = None, locked: bool = False
) -> Packed:
    """Move a model's parameters and buffers next to each other onto huge pages, in place.

    Hundreds of tensors of half a megabyte to a few then fill whole pages. Every tensor keeps its identity,
    shape, strides and values; ties and views stay what they are. Large tensors, and weights that are mapped
    from a file, get huge pages where they are if they can: that copies nothing. Packed and sparse ones are
    left alone.
    Arguments as of `Arena`. Raises UsageError for a node that does not exist, ModelError for an object that
    is neither a torch.nn.Module nor a pipeline holding one.
    """
    model = module_of(model_or_pipeline)
    check_node(numa_node)
    tensors = [*model.parameters(), *model.buffers()]
    movable = [tensor for tensor in tensors if is_plain(tensor)]
    storages = _storages(movable)
    unseen = coverage_problem()  # then nobody knows what has become huge where it lies
    in_place = pages == "thp" and numa_node is None and not locked and not unseen
    stay = _made_huge_in_place(storages) if in_place else set()
    move = [storage for storage in storages if storage not in stay]
    size = sum(padded(storage.bytes.numel()) + COLOUR for storage in move)
    arena = Arena(size, pages=pages, node=numa_node, locked=locked)
    for storage in move:
        _move(storage, arena)
    return Packed(
        moved=sum(storage.bytes.numel() for storage in move),
        in_place=sum(storage.bytes.numel() for storage in stay),
        left=len(tensors) - len(movable),
        problem="; ".join(filter(None, dict.fromkeys((arena.problem, unseen if pages == "thp" else "")))),
    )


def module_of(model_or_pipeline: Any) -> nn.Module:
    """The module itself, or that of a pipeline. Raises ModelError for anything else."""
    for candidate in (model_or_pipeline, getattr(model_or_pipeline, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    raise ModelError(
        "a torch.nn.Module or a transformers pipeline is expected, but got "
        f"{type(model_or_pipeline).__name__}; pass what from_pretrained or hfaccel.optimize returned"
    )


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is an ordinary tensor of this process: bytes that may lie anywhere."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    return (
        plain and tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized
    )


def _storages(tensors: Iterable[torch.Tensor]) -> list[_Storage]:
    found: dict[tuple[int, int], _Storage] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            continue
        key = storage.data_ptr(), storage.nbytes()
        if key not in found:
            found[key] = _Storage(torch.empty(0, dtype=torch.uint8).set_(storage))
        found[key].tensors.append(tensor)
    return list(found.values())


def _move(storage: _Storage, arena: Arena) -> None:
    memory = arena.take((storage.bytes.numel(),), torch.uint8, coloured=True)
    memory.copy_(storage.bytes)
    for tensor in storage.tensors:
        size = tensor.dtype.itemsize
        whole = memory[: memory.numel() // size * size].view(tensor.dtype)
        offset = whole.storage_offset() + tensor.storage_offset()
        with torch.no_grad():
            tensor.data = torch.as_strided(whole, tensor.shape, tensor.stride(), offset)
    storage.bytes = memory  # the old memory goes now, before the next is copied


def _made_huge_in_place(storages: list[_Storage]) -> set[_Storage]:
    """Those that the kernel put on huge pages where they lie: nothing is copied, nothing held twice."""
    large = [storage for storage in storages if _is_large(storage) and _collapsed(storage)]
    return {*large, *_huge_files([storage for storage in storages if storage not in large])}


def _is_large(storage: _Storage) -> bool:
    return storage.bytes.numel() >= LARGE


def _collapsed(storage: _Storage) -> bool:
    """Whether the whole huge pages inside a tensor became such; its two ends remain on small ones."""
    assert native.arena is not None
    address, size = storage.bytes.data_ptr(), storage.bytes.numel()
    native.arena.make_huge(address, size, False)
    if native.arena.make_huge(address, size, True) != 0:
        return False
    return coverage([storage.bytes]) * size >= ENOUGH * size - 2 * HUGE_PAGE


def _huge_files(storages: list[_Storage]) -> set[_Storage]:
    """Those in files that a loader mapped, where the whole file came onto huge pages.

    The kernel does so where the file system has large folios and the file was not in the page cache yet.
    """
    assert native.arena is not None
    by_file: dict[tuple[int, int], list[_Storage]] = {}
    files = _mapped_files()
    for storage in storages:
        address = storage.bytes.data_ptr()
        for low, high in files:
            if low <= address < high:
                by_file.setdefault((low, high), []).append(storage)
    huge: set[_Storage] = set()
    for (low, high), inside in by_file.items():
        native.arena.make_huge(low, high - low, False)
        for storage in inside:
            storage.bytes[::4096].sum()  # reads what is to be copied otherwise
        if coverage([storage.bytes for storage in inside]) >= ENOUGH:
            huge.update(inside)
    return huge


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that map files, from /proc/self/maps."""
    ranges = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:  # noqa: PTH123
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith("/"):
                low, _, high = fields[0].partition("-")
                ranges.append((int(low, 16), int(high, 16)))
    return ranges
