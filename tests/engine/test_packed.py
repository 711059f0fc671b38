"""A packed weight is a parameter like any other, except where a linear layer multiplies it."""

from __future__ import annotations

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from conftest import needs_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from hfaccel.engine.kernels import Kind
from hfaccel.engine.weights.linear import PackedModule, linear_problem, pack, unpack, weight_class
from hfaccel.engine.weights.packed import PackedWeight, packed_bytes
from hfaccel.memory import Arena

pytestmark = needs_kernels


def conv1d(inputs, outputs):
    """A linear layer whose weight is (inputs, outputs); what only it does is in test_conv1d.py."""
    layer = Conv1D(outputs, inputs)
    nn.init.normal_(layer.bias)
    return layer


EACH = pytest.mark.parametrize("make", [nn.Linear, conv1d])


def packed_linear(inputs=256, outputs=320, make=nn.Linear, **settings):
    torch.manual_seed(0)
    linear = make(inputs, outputs, **settings)
    values = linear.weight.detach().clone()
    size = weight_class(linear).layout_of(Kind.FLOAT32, values.shape).nbytes
    assert pack(linear, Arena(size, pages="default")) == ""
    return linear, values


def is_packed(linear):
    return type(linear.weight) is type(linear).hfaccel_key


def stock_linear(linear, values):
    """With these weights and the bias of `linear`."""
    stock = linear.hfaccel_original(*reversed(values.shape))
    stock.load_state_dict({"weight": values, "bias": linear.bias.detach()})
    return stock


sizes = st.integers(1, 300)


@given(sizes, sizes)
@settings(max_examples=60)
def test_unpacking_gives_the_same_bits(rows, columns):
    weight = torch.randn(rows, columns)
    packed = PackedWeight.pack(weight, Arena(packed_bytes(weight), pages="default"))
    assert torch.equal(packed.unpack(), weight)
    assert packed.shape == weight.shape and packed.dtype == weight.dtype


@given(st.integers(1, 9), sizes, sizes, st.booleans())
@settings(max_examples=60)
def test_linear_equals_stock(tokens, inputs, outputs, bias):
    linear, values = packed_linear(inputs, outputs, bias=bias)
    input = torch.randn(2, tokens, inputs)
    expected = nn.functional.linear(input, values, linear.bias)
    with torch.inference_mode():
        torch.testing.assert_close(linear(input), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -0.0, 1e-42])
def test_special_values_survive(special):
    weight = torch.full((256, 256), special)
    packed = PackedWeight.pack(weight, Arena(packed_bytes(weight), pages="default"))
    assert packed.unpack().view(torch.int32).equal(weight.view(torch.int32))


def test_the_parameter_keeps_its_identity():
    linear = nn.Linear(256, 256)
    parameter, optimizer = linear.weight, torch.optim.SGD(linear.parameters(), lr=0.1)
    pack(linear, Arena(packed_bytes(parameter), pages="default"))
    assert linear.weight is parameter is optimizer.param_groups[0]["params"][0]
    assert isinstance(parameter, nn.Parameter) and parameter.requires_grad
    assert isinstance(linear, nn.Linear) and isinstance(linear, PackedModule)


def test_any_operation_sees_the_values():
    linear, values = packed_linear()
    weight = linear.weight
    assert torch.equal(weight, values)
    assert torch.equal(weight.t(), values.t())
    assert weight.norm() == values.norm()
    assert torch.equal(weight[3:5], values[3:5])
    assert torch.equal(weight.detach() * 2, values * 2)
    assert weight.numel() == values.numel() and weight.is_floating_point()


def test_what_reaches_below_the_operators_sees_the_values():
    linear, values = packed_linear()
    weight = linear.weight
    assert (weight.detach().numpy() == values.numpy()).all()
    assert (np.asarray(weight.detach()) == values.numpy()).all()
    assert weight.tolist() == values.tolist()
    assert torch.equal(torch.from_dlpack(weight.detach()), values)
    assert torch.equal(weight.to_dense(), values)
    with pytest.raises(RuntimeError, match="requires grad"):
        weight.numpy()


@pytest.mark.parametrize("reach", [lambda w: w.data_ptr(), lambda w: w.untyped_storage()])
def test_there_is_no_raw_address(reach):
    with pytest.raises(RuntimeError, match="must be in the ordinary layout, but this weight is packed"):
        reach(packed_linear()[0].weight)


@EACH
@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        lambda weight: weight.data.add_(1),
        lambda weight: weight.detach().zero_(),
        lambda weight: weight.copy_(torch.ones_like(weight)),
        lambda weight: nn.init.constant_(weight, 3.0),
        lambda weight: torch._foreach_mul_([weight], 0.5),
        lambda weight: weight.__setitem__(3, 0.0),
        lambda weight: weight.data.__setitem__((slice(2, 5), 7), 1.5),
    ],
)
def test_changes_in_place_are_kept(change, make):
    linear, values = packed_linear(make=make)
    with torch.no_grad():
        change(values)
        change(linear.weight)
        assert torch.equal(linear.weight, values)
        input = torch.randn(4, 256)
        torch.testing.assert_close(linear(input), stock_linear(linear, values)(input))
    assert is_packed(linear)


@EACH
def test_gradients_equal_stock(make):
    linear, values = packed_linear(make=make)
    stock = stock_linear(linear, values)
    input = torch.randn(2, 5, 256, requires_grad=True)
    other = input.detach().clone().requires_grad_()
    for module, source in ((stock, input), (linear, other)):
        module(source).square().mean().backward()
    torch.testing.assert_close(other.grad, input.grad)
    torch.testing.assert_close(linear.weight.grad, stock.weight.grad)
    torch.testing.assert_close(linear.bias.grad, stock.bias.grad)


@EACH
def test_training_changes_the_weight_as_stock_does(make):
    linear, values = packed_linear(make=make)
    stock = stock_linear(linear, values)
    input = torch.randn(8, 256)
    for module in (stock, linear):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-5)  # rounding is not amplified
        for _ in range(3):
            optimizer.zero_grad()
            module(input).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(linear.weight.detach().clone(), stock.weight.detach(), rtol=1e-4, atol=1e-4)


def test_packing_and_unpacking_keep_gradient_and_attributes():
    linear = nn.Linear(256, 256)
    linear.weight.note = "kept"
    linear(torch.ones(1, 256)).sum().backward()
    gradient = linear.weight.grad.clone()
    for step in (lambda: pack(linear, Arena(1 << 20, pages="default")), lambda: unpack(linear)):
        step()
        assert torch.equal(linear.weight.grad, gradient) and linear.weight.note == "kept"
    assert not hasattr(linear.weight, "memory")


def test_packing_inside_inference_mode_is_the_same():
    linear = nn.Linear(256, 256)
    values = linear.weight.detach().clone()
    with torch.inference_mode():
        pack(linear, Arena(1 << 20, pages="default"))
        assert torch.equal(linear.weight.detach().clone(), values)
    linear(torch.ones(1, 256)).sum().backward()
    assert linear.weight.grad is not None
    with torch.inference_mode():
        unpack(linear)
    assert torch.equal(linear.weight, values) and not linear.weight.is_inference()


def test_a_leaf_is_not_written_to_while_gradients_are_on():
    linear, _ = packed_linear()
    with pytest.raises(RuntimeError, match=r"use torch.no_grad"):
        linear.weight[0] = 1.0


def test_a_frozen_weight_stays_frozen():
    linear = nn.Linear(256, 256).requires_grad_(False)
    pack(linear, Arena(packed_bytes(linear.weight), pages="default"))
    assert not linear.weight.requires_grad
    assert not linear(torch.randn(2, 256)).requires_grad


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle, through_torch_save])
def test_copies_are_packed_and_independent(way):
    linear, values = packed_linear()
    other = way(linear)
    assert type(other.weight) is PackedWeight and torch.equal(other.weight, values)
    with torch.no_grad():
        other.weight.zero_()
    assert torch.equal(linear.weight, values)


@EACH
def test_state_dict_holds_ordinary_tensors_and_loads(make):
    linear, values = packed_linear(make=make)
    state = linear.state_dict()
    assert type(state["weight"]) is torch.Tensor and torch.equal(state["weight"], values)
    linear.load_state_dict({"weight": values * 3, "bias": state["bias"]})
    assert torch.equal(linear.weight, values * 3) and is_packed(linear)


@EACH
def test_assigning_another_weight_computes_with_it(make):
    linear, values = packed_linear(make=make)
    linear.load_state_dict({"weight": values * 2, "bias": linear.bias.detach()}, assign=True)
    input = torch.randn(3, 256)
    torch.testing.assert_close(linear(input), stock_linear(linear, values * 2)(input))


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_casting_gives_an_ordinary_weight(dtype, make):
    linear, values = packed_linear(make=make)
    linear.to(dtype)
    assert type(linear.weight) is nn.Parameter and torch.equal(linear.weight, values.to(dtype))
    assert linear(torch.randn(2, 256, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("move", [lambda m: m.to("cpu"), lambda m: m.float(), lambda m: m.eval()])
def test_moving_nowhere_keeps_the_weight_packed(move):
    linear, _ = packed_linear()
    assert type(move(linear).weight) is PackedWeight


def test_share_memory_shares_the_packed_bytes():
    linear, values = packed_linear()
    linear.share_memory()
    assert is_packed(linear) and linear.weight.is_shared() and torch.equal(linear.weight, values)


def test_the_kernels_matrix_is_kept_until_its_memory_or_bias_moves():
    linear, values = packed_linear()
    weight, x = linear.weight, torch.randn(3, values.shape[1])
    expected, kept = linear(x).detach(), weight.matrix(linear.bias)
    assert weight.matrix(linear.bias) is kept and weight.matrix() is not kept
    before = weight.memory
    weight.share_memory_()
    before.zero_()
    assert torch.equal(linear(x), expected)
    assert type(pickle.loads(ForkingPickler.dumps(weight))) is PackedWeight  # without the matrix, an address
    linear.bias = nn.Parameter(linear.bias + 1)
    torch.testing.assert_close(linear(x), expected + 1)


def test_unpack_gives_the_original_back():
    linear, values = packed_linear()
    parameter = linear.weight
    unpack(linear)
    assert type(linear) is nn.Linear and linear.weight is parameter
    assert type(parameter) is nn.Parameter and parameter.is_contiguous() and torch.equal(parameter, values)


@pytest.mark.parametrize(
    "input",
    [
        torch.randn(256),
        torch.randn(0, 256),
        torch.randn(2, 0, 256),
        torch.randn(4, 512)[:, ::2],
        torch.randn(256, 6).t(),
        torch.randn(2, 3, 4, 256),
        torch.randn(5, 1, 256).expand(5, 4, 256),
    ],
    ids=["1-D", "empty", "no tokens", "strided", "transposed", "4-D", "expanded"],
)
def test_odd_inputs_give_what_stock_gives(input):
    linear, values = packed_linear()
    expected = nn.functional.linear(input, values, linear.bias)
    with torch.inference_mode():
        got = linear(input)
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_wrong_inputs_raise_what_stock_raises():
    linear, _ = packed_linear()
    with pytest.raises(RuntimeError):
        linear(torch.randn(2, 255))
    with pytest.raises(RuntimeError):
        linear(torch.randn(2, 256, dtype=torch.float64))


@EACH
@pytest.mark.parametrize("rows", [2, 100])
def test_autocast_computes_in_bfloat16_without_unpacking_at_each_call(rows, make, monkeypatch):
    linear, values = packed_linear(make=make)
    stock, input = stock_linear(linear, values), torch.randn(rows, 256)
    unpacked, original = [], PackedWeight.unpack
    monkeypatch.setattr(PackedWeight, "unpack", lambda self: unpacked.append(1) or original(self))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = stock(input)
        for _ in range(3):
            got = linear(input)
            assert got.dtype == expected.dtype == torch.bfloat16
            torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)
    assert len(unpacked) <= 1
    with torch.no_grad():
        linear.weight.mul_(2)
        stock.weight.mul_(2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(linear(input), stock(input), rtol=0.02, atol=0.02)


@EACH
@pytest.mark.parametrize("way", ["half", "load"])
def test_autocast_with_a_weight_that_is_not_packed_is_stock(way, make):
    linear, values = packed_linear(make=make)
    stock, input = stock_linear(linear, values), torch.randn(50, 256)
    for each in (linear.eval(), stock.eval()):
        if way == "half":
            each.to(torch.float16)
        else:
            each.load_state_dict({name: v + 1 for name, v in each.state_dict().items()}, assign=True)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(linear(input), stock(input))


def test_autocast_with_gradients_is_stock():
    linear, values = packed_linear()
    stock, input = stock_linear(linear, values), torch.randn(50, 256)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for each in (linear, stock):
            each(input).float().square().mean().backward()
    torch.testing.assert_close(linear.weight.grad, stock.weight.grad)


@pytest.mark.parametrize(
    ("module", "text"),
    [
        (nn.Linear(8, 300), "narrower than 64"),
        (nn.Linear(300, 300).double(), "float32 and bfloat16 are packed"),
        (nn.Linear(300, 300, device="meta"), "is on meta"),
        (type("Custom", (nn.Linear,), {})(300, 300), "not a plain nn.Linear"),
        (nn.Linear(300, 300).share_memory(), "shared with other processes"),
        (torch.inference_mode()(lambda: nn.Linear(300, 300))(), "made in inference mode"),
    ],
)
def test_layers_that_are_left_alone(module, text):
    assert text in linear_problem(module)
