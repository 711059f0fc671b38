"""pack_: tensors move next to each other onto huge pages, and nobody notices."""

from __future__ import annotations

import copy
import gc
import itertools

import pytest
import torch
from conftest import needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfaccel import memory
from hfaccel.errors import UsageError

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]


class Everything(nn.Module):
    """Parameters and buffers of all kinds."""

    def __init__(self):
        super().__init__()
        base = torch.arange(24.0)
        self.plain = nn.Parameter(torch.randn(7, 5))
        self.tied = self.plain
        self.first, self.second = nn.Parameter(base[:10]), nn.Parameter(base[5:20])  # overlap
        self.transposed = nn.Parameter(torch.randn(6, 4).t())
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("bfloat", torch.randn(9).bfloat16())
        self.register_buffer("odd", torch.arange(13, dtype=torch.uint8)[3:])
        self.register_buffer("sparse", torch.eye(3).to_sparse(), persistent=False)


def views(model):
    return {name: (t.shape, t.stride(), t.dtype, t.requires_grad) for name, t in model.named_parameters()}


def test_values_shapes_strides_and_identities_stay():
    model = Everything()
    before, values = views(model), copy.deepcopy(model.state_dict())
    parameters = dict(model.named_parameters())
    packed = memory.pack_(model)
    assert packed.left == 1  # the sparse one
    assert views(model) == before
    assert all(parameters[name] is parameter for name, parameter in model.named_parameters())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, values[name], rtol=0, atol=0)


def test_ties_and_views_stay_what_they_are():
    model = Everything()
    memory.pack_(model)
    assert model.tied is model.plain
    with torch.no_grad():
        model.first[7] = 100
    assert model.second[2] == 100  # the same memory, as before


@given(st.lists(st.tuples(st.integers(0, 5000), st.sampled_from(DTYPES)), max_size=20))
@settings(max_examples=40)
def test_tensors_of_every_type_and_size_keep_their_values(wanted):
    model = nn.Module()
    for number, (size, dtype) in enumerate(wanted):
        model.register_buffer(f"b{number}", torch.arange(size).to(dtype))
    memory.pack_(model)
    for number, (size, dtype) in enumerate(wanted):
        assert torch.equal(getattr(model, f"b{number}"), torch.arange(size).to(dtype))


def test_packing_twice_and_training_afterwards_work():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 2))
    inputs = torch.randn(4, 16)
    expected = model(inputs)
    memory.pack_(model)
    memory.pack_(model)
    assert torch.equal(model(inputs), expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(inputs).sum().backward()
    optimizer.step()
    assert not torch.equal(model(inputs), expected)


def test_the_memory_goes_with_the_last_tensor():
    model = nn.Module()
    model.register_buffer("a", torch.ones(1 << 20))
    memory.pack_(model)
    kept = model.a[:3]
    del model
    gc.collect()
    assert kept.tolist() == [1, 1, 1]


def thp_is_on() -> bool:
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:  # noqa: PTH123
        return "[never]" not in file.read()


@pytest.mark.skipif(not thp_is_on(), reason="transparent huge pages are off on this machine")
def test_tensors_below_two_megabytes_fill_huge_pages():
    """Alone none of them would get any; together they waste next to nothing."""
    sizes = torch.randint(131_072, 393_216, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    model = nn.ParameterList([nn.Parameter(torch.ones(size)) for size in sizes])
    assert memory.coverage(model) < 0.5
    packed = memory.pack_(model)
    assert memory.coverage(model) >= 0.98
    addresses = sorted((p.data_ptr(), p.numel() * 4) for p in model.parameters())
    span = addresses[-1][0] + addresses[-1][1] - addresses[0][0]
    assert span < 1.02 * packed.moved == 1.02 * 4 * sum(sizes)


@pytest.mark.skipif(not thp_is_on(), reason="transparent huge pages are off on this machine")
@needs_kernels
def test_an_optimized_model_is_on_huge_pages(bert, batch):
    import hfaccel

    expected = bert(**batch)[0]
    fast = hfaccel.optimize(bert)
    assert memory.coverage(fast) >= 0.98
    torch.testing.assert_close(fast(**batch)[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("node", [-1, 99, 5000])
def test_a_node_that_does_not_exist_is_refused(node):
    with pytest.raises(UsageError, match=f"a NUMA node must be one of .*, but got {node}"):
        memory.pack_(nn.Linear(2, 2), numa_node=node)
    with pytest.raises(UsageError, match="a NUMA node must be"):
        memory.empty(3, numa_node=node)


def test_pages_of_a_node_and_locked_ones_can_be_had_or_the_reason():
    arena = memory.Arena(4 << 20, pages="hugetlb", node=0, locked=True)
    arena.take((1 << 18,)).fill_(1)
    assert arena.pages in ("hugetlb", "thp", "default")
    if arena.pages != "hugetlb":
        assert "mmap(MAP_HUGETLB): Cannot allocate memory" in arena.problem


def test_no_two_neighbours_begin_at_one_place_of_a_page():
    arena = memory.Arena(1 << 20)
    starts = [arena.take((1024,), coloured=True).data_ptr() % 4096 for _ in range(8)]
    assert all(a != b for a, b in itertools.pairwise(starts))
