"""Moves a model's tensors next to each other onto huge pages. Nothing else about them changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import nn

from hfaccel import native
from hfaccel.errors import ModelError
from hfaccel.host import Tree
from hfaccel.memory.arena import COLOUR, HUGE_PAGE, Arena, Pages, check_node, padded
from hfaccel.memory.coverage import coverage, coverage_problem

ENOUGH = 0.98  # memory with this share on huge pages stays where it is
LARGE = 32 << 20  # bytes of a tensor from which the small pages at its two ends do not matter


@dataclass(eq=False)
class Storage:
    """One piece of memory and its tensors: several if weights are tied or are views."""

    bytes: torch.Tensor
    tensors: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Packed:
    """What pack_ did."""

    moved: int  # bytes that were copied onto huge pages
    in_place: int  # bytes that got huge pages without a copy: large tensors, files mapped by a loader
    left: int  # tensors that cannot be moved: packed already, sparse, on another device
    problem: str  # what the system refused; "" for nothing


def pack_(
    model_or_pipeline: object, *, pages: Pages = "thp", numa_node: int | None = None, locked: bool = False
) -> Packed:
    """Move a model's parameters and buffers next to each other onto huge pages, in place.

    Hundreds of tensors of a megabyte or so then fill whole pages. Every tensor keeps its identity, shape,
    strides and values; ties and views stay what they are. Large tensors, and weights that are mapped from a
    file, get huge pages without a copy if the kernel can do that. Packed and sparse tensors stay where they
    are. `pages`, `numa_node` and `locked`: see `Arena`.

    Raises UsageError for a node that does not exist, ModelError for an object that is neither a
    torch.nn.Module nor a pipeline with one.
    """
    model = module_of(model_or_pipeline)
    check_node(numa_node)
    tensors = [*model.parameters(), *model.buffers()]
    movable = [tensor for tensor in tensors if is_plain(tensor)]
    storages = by_storage(movable)
    unseen = coverage_problem()  # if not "", nothing shows which pages have become huge
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


def module_of(model_or_pipeline: object) -> nn.Module:
    """The module itself, or a pipeline's module. Raises ModelError for anything else."""
    for candidate in (model_or_pipeline, getattr(model_or_pipeline, "model", None)):
        if isinstance(candidate, nn.Module):
            return candidate
    raise ModelError(
        "a torch.nn.Module or a transformers pipeline is expected, but got "
        f"{type(model_or_pipeline).__name__}; pass what from_pretrained or hfaccel.optimize returned"
    )


def held(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor that has the bytes: for a packed weight its memory, otherwise the tensor itself."""
    memory = vars(tensor).get("memory")
    return memory if isinstance(memory, torch.Tensor) else tensor


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor is an ordinary CPU tensor, whose bytes may lie anywhere."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    return (
        plain and tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized
    )


def by_storage(tensors: Iterable[torch.Tensor]) -> list[Storage]:
    """The storages that hold the tensors, without empty storages."""
    found: dict[tuple[int, int], Storage] = {}
    for tensor in tensors:
        storage = held(tensor).untyped_storage()
        if storage.nbytes() == 0:
            continue
        key = storage.data_ptr(), storage.nbytes()
        if key not in found:
            found[key] = Storage(torch.empty(0, dtype=torch.uint8).set_(storage))
        found[key].tensors.append(tensor)
    return list(found.values())


def _move(storage: Storage, arena: Arena) -> None:
    memory = arena.take((storage.bytes.numel(),), torch.uint8, coloured=True)
    memory.copy_(storage.bytes)
    for tensor in storage.tensors:
        size = tensor.dtype.itemsize
        whole = memory[: memory.numel() // size * size].view(tensor.dtype)
        offset = whole.storage_offset() + tensor.storage_offset()
        with torch.no_grad():
            tensor.data = torch.as_strided(whole, tensor.shape, tensor.stride(), offset)
    storage.bytes = memory  # frees the old memory before the next storage is copied


def _made_huge_in_place(storages: list[Storage]) -> set[Storage]:
    """The storages that the kernel moved to huge pages at the same address, without a copy of ours."""
    large = [storage for storage in storages if storage.bytes.numel() >= LARGE and _collapsed(storage)]
    return {*large, *_huge_files([storage for storage in storages if storage not in large])}


def _collapsed(storage: Storage) -> bool:
    """Move a storage to huge pages in place. Returns whether all of it is on huge pages, except its ends."""
    assert native.arena is not None
    address, size = storage.bytes.data_ptr(), storage.bytes.numel()
    native.arena.make_huge(address, size, False)
    if native.arena.make_huge(address, size, True) != 0:
        return False
    return coverage([storage.bytes]) * size >= ENOUGH * size - 2 * HUGE_PAGE


def _huge_files(storages: list[Storage]) -> set[Storage]:
    """The storages in files that a loader mapped and that are entirely on huge pages.

    This happens if the file system has large folios and the file was not in the page cache before.
    """
    assert native.arena is not None
    by_file: dict[tuple[int, int], list[Storage]] = {}
    files = _mapped_files()
    for storage in storages:
        address = storage.bytes.data_ptr()
        for low, high in files:
            if low <= address < high:
                by_file.setdefault((low, high), []).append(storage)
    huge: set[Storage] = set()
    for (low, high), inside in by_file.items():
        native.arena.make_huge(low, high - low, False)
        for storage in inside:
            storage.bytes[::4096].sum()  # reads every page, as a copy would
        if coverage([storage.bytes for storage in inside]) >= ENOUGH:
            huge.update(inside)
    return huge


def _mapped_files() -> list[tuple[int, int]]:
    """Address ranges of this process that map files, from /proc/self/maps."""
    ranges = []
    for line in Tree().lines("/proc/self/maps"):
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            low, _, high = fields[0].partition("-")
            ranges.append((int(low, 16), int(high, 16)))
    return ranges
