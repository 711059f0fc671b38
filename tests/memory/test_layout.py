"""Where tensors go in a region, and the checksum of one."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hfaccel.memory import digest, lay_out

DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]


@given(
    st.lists(st.tuples(st.integers(0, 300), st.sampled_from(DTYPES)), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8),
)
@settings(max_examples=60)
def test_tensors_of_every_kind_keep_values_ties_and_overlaps(wanted, cuts):
    model = nn.Module()
    for number, (size, dtype) in enumerate(wanted):
        model.register_buffer(f"b{number}", torch.arange(size).to(dtype))
    base = torch.arange(64.0)
    for number, (start, length) in enumerate(cuts):
        model.register_buffer(f"c{number}", base[start : start + length])
    before = {name: tensor.clone() for name, tensor in model.named_buffers()}
    layout = lay_out(model)
    assert layout.left == 0
    region = torch.zeros(layout.size, dtype=torch.uint8)
    layout.write(region)
    layout.put(region)
    end = region.data_ptr() + region.numel()
    for name, tensor in model.named_buffers():
        assert torch.equal(tensor, before[name])
        assert tensor.numel() == 0 or region.data_ptr() <= tensor.data_ptr() < end
    over = [(number, start) for number, (start, length) in enumerate(cuts) if start <= 10 < start + length]
    for number, start in over[:1]:
        model.get_buffer(f"c{number}")[10 - start] = 100
    for number, start in over:  # what overlaps still does
        assert model.get_buffer(f"c{number}")[10 - start] == 100


def test_strides_stay():
    model = nn.Module()
    model.weight = nn.Parameter(torch.randn(6, 4).t())
    expected, parameter = model.weight.detach().clone(), model.weight
    layout = lay_out(model)
    region = torch.zeros(layout.size, dtype=torch.uint8)
    layout.write(region)
    layout.put(region)
    assert model.weight is parameter and parameter.stride() == (1, 4) and torch.equal(parameter, expected)


def test_what_has_no_memory_of_its_own_is_left():
    model = nn.Module()
    model.register_buffer("sparse", torch.eye(3).to_sparse())
    model.register_buffer("elsewhere", torch.empty(3, device="meta"))
    layout = lay_out(model)
    assert (layout.left, layout.size) == (2, 0)


REGION = torch.randint(0, 256, (3 << 20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@given(st.integers(0, REGION.numel() - 1), st.integers(1, 255))
@settings(max_examples=30)
def test_one_changed_byte_changes_the_checksum(place, change):
    damaged = REGION.clone()
    damaged[place] ^= change
    assert digest(damaged) != digest(REGION) == digest(REGION.clone())


def test_exchanged_and_missing_pages_change_the_checksum():
    pages = REGION.view(-1, 4096)
    exchanged, missing = pages.clone(), pages.clone()
    exchanged[[3, 700]] = pages[[700, 3]]
    missing[5] = 0
    checksums = {digest(each.view(-1)) for each in (pages, exchanged, missing)}
    assert len(checksums) == 3
    assert digest(REGION[: 2 << 20]) not in checksums
