"""Whole numbers and scales are read off values."""

from __future__ import annotations

import pytest
import torch

from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.grid import find_grid
from hfaccel.engine.weights.groups import round_groups, values_of
from hfaccel.engine.weights.packed import PackedWeight

ROWS, COLUMNS = 80, 128


def random(low, high, size=(ROWS, COLUMNS)):
    return torch.randint(low, high, size, generator=torch.Generator().manual_seed(low + high)).float()


def scales(exponent=0):
    """One for each group of 32, with the eight bits of bfloat16."""
    found = torch.rand((ROWS, COLUMNS // 32), generator=torch.Generator().manual_seed(7)) + 0.5
    return (found.bfloat16().float() * 2.0**exponent).repeat_interleave(32, 1)


def again(values, grid):
    return values_of(round_groups(values, grid.kind, grid.table), grid.kind, COLUMNS, values.dtype)


E2M1 = torch.tensor([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6])
GRIDS = {
    "4 bits, no minimum": (scales() * random(-8, 8), Kind.INT4_GROUPS_OF_32),
    "4 bits, a negative scale": (-scales() * random(-8, 8), Kind.INT4_GROUPS_OF_32),
    "4 bits, a minimum": (scales() * random(0, 16) - 3 * 2**-4, Kind.INT4_GROUPS_OF_32),
    "three values": (scales(-9) * random(-1, 2), Kind.INT4_GROUPS_OF_32),
    "floats of 4 bits": (
        scales().log2().round().exp2() * E2M1[random(0, 15).long()],
        Kind.E2M1_GROUPS_OF_32,
    ),
    "25 numbers, not all of them floats of 4 bits": (scales() * random(-12, 13), Kind.INT8_GROUPS_OF_32),
    "8 bits": (scales(-12) * random(-127, 128), Kind.INT8_GROUPS_OF_32),
    "8 bits, -128": (scales() * random(-128, 128), Kind.INT8_GROUPS_OF_32),
    "groups of 16": (
        scales() * random(-32, 32) * 2.0 ** (torch.arange(COLUMNS) % 32 // 16 * 3),
        Kind.INT8_GROUPS_OF_16,
    ),
    "zeros": (torch.zeros(ROWS, COLUMNS), Kind.INT4_GROUPS_OF_32),
    "equal numbers": (torch.full((ROWS, COLUMNS), -0.75), Kind.INT4_GROUPS_OF_32),
}


@pytest.mark.parametrize(("values", "kind"), GRIDS.values(), ids=GRIDS)
def test_values_are_given_again_to_the_bit(values, kind):
    """Of scales that are bfloat16."""
    values = values.clone()
    values[3], values[5, 32:64] = 0, 0.5
    grid = find_grid(values, 8)
    assert grid.kind is kind and again(values, grid).equal(values)


def test_a_minimum_that_is_hundreds_of_steps_away_from_zero():
    values = random(0, 16) + torch.linspace(-4000, 4000, ROWS)[:, None].round()
    grid = find_grid(values, 8)
    assert grid.kind is Kind.INT4_GROUPS_OF_32
    assert ((again(values, grid) - values).abs() <= 2**-8 * values.abs().amax(1, keepdim=True)).all()


def test_fewer_bits_than_the_values_have():
    assert find_grid(GRIDS["8 bits"][0], 4) is None
    assert find_grid(GRIDS["4 bits, no minimum"][0], 4) is not None


ORDINARY = {
    "normal": torch.randn(ROWS, COLUMNS),
    "uniform": torch.rand(ROWS, COLUMNS),
    "9 bits": scales() * random(-255, 256),
    "groups of 8": scales() * random(-8, 8) * (torch.arange(COLUMNS) % 32 // 8 * 0.317 + 1),
    "narrower than a group": random(0, 2, (ROWS, 15)),
    "no rows": torch.zeros(0, COLUMNS),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_weights(values, dtype):
    assert find_grid(values.to(dtype), 8) is None


def test_one_group_that_lies_on_no_grid():
    values = GRIDS["4 bits, no minimum"][0].clone()
    values[77, 96:] = torch.randn(32)
    assert find_grid(values, 8) is None


def test_a_packed_weight_is_unpacked_once_to_be_rounded(monkeypatch):
    weight, calls, unpack = PackedWeight.pack(torch.randn(640, 1024)), [], PackedWeight.unpack
    monkeypatch.setattr(PackedWeight, "unpack", lambda self: calls.append(self) or unpack(self))
    PackedWeight.pack(weight, kind=Kind.INT8_WEIGHT_ONLY)
    assert len(calls) == 1
