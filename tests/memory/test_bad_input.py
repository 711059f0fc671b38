"""What is no size, shape, kind of page, node or tensor: an error that names rule and value, never a crash."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hfaccel import memory
from hfaccel.errors import ModelError, UsageError
from hfaccel.memory import Arena

HUGE = [1 << 63, 1 << 64, 1 << 200]
NO_INTEGERS = [1.5, "3", b"3", None, True, False, {}, {1, 2}, torch.ones(2), numpy.ones(2), float("nan")]
sizes = st.integers(-(1 << 70), 1 << 70)


@pytest.mark.parametrize("size", [-1, -(1 << 80), *HUGE, *NO_INTEGERS], ids=repr)
@pytest.mark.parametrize("pages", ["thp", "default"])
def test_a_size_that_no_arena_can_have(size, pages):
    with pytest.raises(UsageError, match=r"`0 <= size < 2\*\*63` bytes must hold for an arena, but got"):
        Arena(size, pages=pages)


@pytest.mark.parametrize("shape", [*NO_INTEGERS, (1.0, 2), ("a",), (2, [3]), (True, 2), (None,)], ids=repr)
@pytest.mark.parametrize("pages", memory.arena.PAGES)
def test_what_is_no_shape(shape, pages):
    with pytest.raises(UsageError, match="a shape must be an integer or a sequence of integers, but got"):
        memory.empty(shape, pages=pages)
    arena = Arena(4096)
    with pytest.raises(UsageError, match="a shape must be"):
        arena.take(shape)
    assert arena.used == 0


@pytest.mark.parametrize("shape", [-1, (-1,), (-1, -4), (0, -3), *HUGE, (0, 1 << 63)], ids=repr)
@pytest.mark.parametrize("pages", memory.arena.PAGES)
def test_sizes_that_no_tensor_can_have(shape, pages):
    with pytest.raises(UsageError, match=r"every size of a shape must be .* 0 or more, but got"):
        memory.empty(shape, pages=pages)
    arena = Arena(4096)
    with pytest.raises(UsageError, match="every size of a shape"):
        arena.take(shape)
    assert arena.used == 0


@pytest.mark.parametrize("shape", [1 << 62, (1 << 62, 1 << 62), (1 << 31, 1 << 31)], ids=repr)
@pytest.mark.parametrize("pages", memory.arena.PAGES)
def test_shapes_of_more_bytes_than_an_address_has(shape, pages):
    with pytest.raises(UsageError, match=r"bytes must hold for a tensor, but got \d{19}"):
        memory.empty(shape, pages=pages)


@pytest.mark.parametrize("pages", ["thp", "hugetlb", "hugetlb-1g", "default"])
def test_more_memory_than_the_machine_has_is_refused_at_once_and_not_at_the_first_touch(pages):
    """A terabyte of a hundred: mapped without a reserve, the first touches would get the process killed."""
    with open("/proc/sys/vm/overcommit_memory") as file:  # noqa: PTH123
        if file.read().strip() == "1":
            pytest.skip("the kernel promises any amount of memory here (vm.overcommit_memory=1)")
    for make in (lambda: Arena(100 << 40, pages=pages), lambda: memory.empty(100 << 40, pages=pages)):
        with pytest.raises(RuntimeError, match=r"can't allocate memory.* \d{15} bytes"):
            make()


@given(st.lists(sizes, max_size=4), st.sampled_from([torch.float32, torch.int8, torch.complex128]))
def test_whatever_is_taken_fits_or_is_refused(shape, dtype):
    arena = Arena(1 << 16)
    before = arena.take((3,)).fill_(5)
    try:
        taken = arena.take(shape, dtype)
    except UsageError:
        assert arena.used == 12
    else:
        assert list(taken.shape) == shape and arena.used >= 12
        taken.zero_()
    assert before.tolist() == [5, 5, 5]


@pytest.mark.parametrize(
    "shape", [numpy.int64(3), (numpy.int32(3),), torch.Size([3]), [3], torch.tensor([3])[0]]
)
def test_what_is_an_integer_elsewhere_is_one_here(shape):
    assert memory.empty(shape, pages="thp").shape == (3,)


@pytest.mark.parametrize("pages", ["gigantic", "", "THP", None, 1, b"thp", ["thp"]], ids=repr)
def test_kinds_of_page_that_do_not_exist(pages):
    for make in (
        lambda: memory.empty(3, pages=pages),
        lambda: Arena(4096, pages=pages),
        lambda: Arena(0, pages=pages),
        lambda: memory.pack_(nn.Linear(3, 3), pages=pages),
    ):
        with pytest.raises(UsageError, match=r"pages must be one of .*, but got"):
            make()


def test_a_kind_of_page_is_refused_before_anything_moves():
    layer = nn.Linear(3, 3)
    address = layer.weight.data_ptr()
    with pytest.raises(UsageError):
        memory.pack_(layer, pages="gigantic")
    assert layer.weight.data_ptr() == address


@pytest.mark.parametrize("node", [-1, 999, 1 << 70, 0.0, 1.5, "0", True, False, [0]], ids=repr)
def test_nodes_that_do_not_exist(node):
    for make in (
        lambda: memory.empty(3, numa_node=node),
        lambda: Arena(4096, node=node),
        lambda: memory.pack_(nn.Linear(3, 3), numa_node=node),
    ):
        with pytest.raises(UsageError, match=r"a NUMA node must be one of \[.*\], but got"):
            make()


@pytest.mark.parametrize("dtype", [float, "float32", None, numpy.float32], ids=repr)
def test_types_that_are_not_torchs(dtype):
    for make in (lambda: memory.empty(3, dtype=dtype), lambda: Arena(4096).take((3,), dtype)):
        with pytest.raises(UsageError, match=r"dtype must be a torch\.dtype, such as .*, but got"):
            make()


@pytest.mark.parametrize("call", [memory.pack_, memory.share], ids=["pack_", "share"])
@pytest.mark.parametrize("given", [None, 5, "abc", nn.Linear, torch.ones(3), [nn.Linear(2, 2)]], ids=repr)
def test_what_is_no_model(call, given):
    with pytest.raises(ModelError, match="Module or a transformers pipeline is expected, but got"):
        call(given)


@pytest.mark.parametrize("given", [None, 5, [1], "abc", [None], {"a": torch.ones(3)}], ids=repr)
def test_coverage_of_what_is_neither_model_nor_tensor(given):
    with pytest.raises(ModelError, match="a model or tensors are expected, but"):
        memory.coverage(given)


def test_coverage_of_tensors_without_memory_of_their_own():
    freed = torch.ones(5000)
    freed.untyped_storage().resize_(0)  # what sharding libraries do to a weight that is elsewhere now
    odd = [
        freed,
        torch.empty(0),
        torch.empty(3, 0),
        torch.ones(4, device="meta"),
        torch.eye(3).to_sparse(),
        torch.ones(3).expand(4, 3),
        torch.tensor(1.0),
    ]
    assert memory.coverage(odd) == 0.0
    assert memory.coverage(torch.tensor(1.0)) == memory.coverage(torch.ones(3)) == 0.0
    assert memory.coverage(iter(odd)) == 0.0
    layer = nn.Linear(3, 3)
    del layer.weight
    assert memory.coverage(layer) == 0.0
