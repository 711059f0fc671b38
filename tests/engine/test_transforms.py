"""torch.func and forward-mode differentiation: they transform every operation, of which a kernel is none."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from conftest import make_bert
from torch import nn
from torch.autograd import forward_ad

import hfaccel
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


def conv1d():
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(Conv1D(64, 64), nn.Tanh())


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64)),
    "conv1d": conv1d,
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(-1, (4, 4, 4)), nn.Conv2d(4, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(-3)
    ),
    "BERT": lambda: Encoder(make_bert(hidden_size=64, intermediate_size=128)),
}
MODES = {"gradients": nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}


class Encoder(nn.Module):
    """(batch, 64) -> (batch, 4 * 64)"""

    def __init__(self, bert):
        super().__init__()
        bert.set_attn_implementation("sdpa")
        self.bert = bert

    def forward(self, x):
        parts = torch.stack([x, 2 * x, -x, x.flip(-1)], -2)
        return self.bert(inputs_embeds=parts).last_hidden_state.flatten(-2)


def dual(function, x):
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.flip(0)))).tangent
        return torch.zeros(()) if tangent is None else tangent


def of_parameters(model, x):
    """Gradients of each sample, as for differential privacy."""
    values = {name: each.detach() for name, each in model.named_parameters()}

    def loss(values, x):
        return torch.func.functional_call(model, values, (x[None],)).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    return torch.cat([each.flatten() for each in gradients.values()])


TRANSFORMS = {
    "grad": lambda model, x: torch.func.grad(lambda x: model(x).square().sum())(x),
    "vmap": lambda model, x: torch.vmap(lambda one: model(one[None])[0])(x),
    "jvp": lambda model, x: torch.func.jvp(model, (x,), (x.flip(0),))[1],
    "jacrev": lambda model, x: torch.func.jacrev(lambda one: model(one[None])[0])(x[0]),
    "hessian": lambda model, x: torch.func.hessian(lambda one: model(one[None]).sum())(x[0]),
    "forward mode": lambda model, x: dual(model, x),
    "of parameters": of_parameters,
}
BY_FORWARD_MODE = ("jvp", "hessian", "forward mode")  # which torch's attention does not know


def cases():
    for network in NETWORKS:
        for transform in TRANSFORMS:
            if network != "BERT" or transform not in BY_FORWARD_MODE:
                # torch differentiates nothing in inference mode
                modes = MODES if transform == "vmap" else ("gradients", "no_grad")
                yield from ((network, transform, mode) for mode in modes)


@pytest.mark.parametrize(("network", "transform", "mode"), cases())
def test_transforms_give_what_stock_gives(network, transform, mode):
    torch.manual_seed(0)
    stock, x = NETWORKS[network]().eval(), torch.randn(3, 64)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    with MODES[mode]():
        expected, got = (TRANSFORMS[transform](model, x) for model in (stock, fast))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), stock(x), rtol=0, atol=1e-4)


def test_every_sequence_apart():
    stock, ids = make_bert(), torch.randint(5, 1000, (3, 7))
    fast = hfaccel.optimize(copy.deepcopy(stock))
    with torch.inference_mode():
        expected, got = (
            torch.vmap(lambda one, model=model: model(input_ids=one[None])[0])(ids) for model in (stock, fast)
        )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_views_of_a_packed_weight_in_inference_mode():
    fast = hfaccel.optimize(nn.Sequential(nn.Linear(64, 64)).eval())
    with torch.inference_mode():
        weight = fast[0].weight
        assert torch.equal(weight.t()[1], weight[:, 1])
