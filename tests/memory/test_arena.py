"""Arenas and hfaccel.memory.empty."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfaccel import memory, native
from hfaccel.errors import UsageError
from hfaccel.memory import Arena, padded

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
shapes = st.lists(st.integers(0, 40), max_size=4).map(tuple)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), max_size=12), st.booleans())
@settings(max_examples=60)
def test_tensors_do_not_overlap_and_are_aligned(wanted, huge):
    sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in wanted]
    arena = Arena(sum(map(padded, sizes)), pages="thp" if huge else "default")
    taken = [arena.take(shape, dtype) for shape, dtype in wanted]
    for number, tensor in enumerate(taken):
        tensor.view(-1).view(torch.uint8).fill_(number + 1) if tensor.numel() else None
    for number, (tensor, (shape, dtype)) in enumerate(zip(taken, wanted, strict=True)):
        assert tensor.shape == torch.Size(shape) and tensor.dtype == dtype and tensor.is_contiguous()
        if tensor.numel():
            assert tensor.data_ptr() % 64 == 0
            assert (tensor.view(-1).view(torch.uint8) == number + 1).all()


def test_a_full_arena_says_so():
    arena = Arena(100, pages="default")
    arena.take((16,))
    with pytest.raises(UsageError, match="an arena holds 100 bytes, but"):
        arena.take((16,))


def test_a_tensor_outlives_its_arena():
    arena = Arena(4 << 20)
    tensor = arena.take((1000,))
    del arena
    gc.collect()
    assert tensor.fill_(2).sum() == 2000


def test_negative_sizes_are_refused():
    with pytest.raises(UsageError, match="must hold for an arena, but got -1"):
        Arena(-1)


class NoMemory:
    def Region(self, size, pages, node, locked):
        raise OSError(12, f"mmap of {size} bytes at (nil): Cannot allocate memory")


def test_without_memory_for_a_region_torch_allocates(monkeypatch):
    monkeypatch.setattr(native, "arena", NoMemory())
    arena = Arena(4096)
    assert "Cannot allocate memory" in arena.problem
    assert arena.take((1024,)).shape == (1024,)


def test_without_the_extension_torch_allocates_and_says_why(monkeypatch):
    monkeypatch.setattr(native, "arena", None)
    monkeypatch.setattr(native, "MISSING", "the native part is missing")
    arena = Arena(4096)
    assert arena.problem == "the native part is missing"
    assert arena.take((1024,)).shape == (1024,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pages", ["auto", "thp", "default"])
def test_empty_has_the_shape_asked_for(dtype, pages):
    tensor = memory.empty((3, 5), dtype=dtype, pages=pages)
    assert tensor.shape == (3, 5) and tensor.dtype == dtype
    assert memory.empty((0, 7), dtype=dtype, pages=pages).shape == (0, 7)
    assert memory.empty(9, dtype=dtype, pages=pages).shape == (9,)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"shape": (2, -3)}, r"0 or more, but got \(2, -3\)"),
        ({"shape": 3, "pages": "gigantic"}, "pages must be one of .*, but got 'gigantic'"),
    ],
)
def test_empty_refuses_nonsense(arguments, text):
    with pytest.raises(UsageError, match=text):
        memory.empty(**arguments)


def thp_is_on() -> bool:
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:  # noqa: PTH123
        return "[never]" not in file.read()


@pytest.mark.skipif(not thp_is_on(), reason="transparent huge pages are off on this machine")
def test_coverage_reads_what_the_kernel_gave():
    huge = memory.empty((8 << 20,), pages="thp").fill_(1)
    assert memory.coverage([huge]) == 1.0
    assert memory.coverage([huge[: 4 << 20], huge[4 << 20 :]]) == 1.0
    plain = memory.Arena(4 << 20, pages="default", node=0).take((1000,)).fill_(1)
    assert memory.coverage([plain]) == 0.0
    assert memory.coverage([]) == 0.0


def test_coverage_counts_untouched_memory_as_not_covered():
    assert memory.coverage([memory.empty((8 << 20,), pages="thp")]) == 0.0


def test_ranges_close_together_become_one():
    from hfaccel.memory.coverage import merge

    assert merge([(9000, 9100), (0, 100), (164, 300), (50, 80)]) == [(0, 300), (9000, 9100)]
