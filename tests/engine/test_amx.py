"""AMX multiplies what vector instructions multiply elsewhere: the results agree, and it can be left out."""

import copy
import math
import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertModel

import hfaccel
from hfaccel import native
from hfaccel.engine.gains import Times
from hfaccel.engine.kernels import amx_problem

pytestmark = pytest.mark.skipif(bool(amx_problem()), reason=f"no AMX here: {amx_problem()}")

ASK = (
    "from hfaccel.engine.kernels import amx_problem, kernels_problem; print(kernels_problem(), amx_problem())"
)


@pytest.fixture(autouse=True)
def packed_even_if_slower(monkeypatch):
    """What is computed is tested here; whether it pays may vary from run to run."""
    monkeypatch.setattr(Times, "is_slower", False)


@pytest.fixture
def without_amx():
    def call(function):
        native.kernels.use_amx(False)
        try:
            return function()
        finally:
            native.kernels.use_amx(True)

    return call


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({}, 3e-6), ({"dtype": torch.bfloat16}, 2e-2), ({"quantization": "int8"}, 1e-4)],
    ids=["float32", "bfloat16", "int8"],
)
@pytest.mark.parametrize(("heads", "hidden"), [(2, 64), (2, 40), (3, 96)])
def test_both_ways_of_multiplying_agree(without_amx, options, tolerance, heads, hidden):
    """Heads and hidden sizes of whole steps of AMX and of parts of one; lengths around its tiles."""
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden, num_attention_heads=heads, intermediate_size=2 * hidden + 8, num_hidden_layers=2,
        vocab_size=99,
    )  # fmt: skip
    model = hfaccel.optimize(BertModel(config).eval(), backend="torch", **options)
    for lengths in ([1], [15, 16, 17], [31, 33, 64, 65], [130, 7]):
        ids = torch.randint(1, 99, (len(lengths), max(lengths)))
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()

        def run(ids=ids, mask=mask):
            with torch.inference_mode():
                return model(input_ids=ids, attention_mask=mask).last_hidden_state

        torch.testing.assert_close(run(), without_amx(run), rtol=0, atol=tolerance)


def test_float32_in_parts_loses_no_more_than_float32():
    """Numbers of many sizes, against float64: split in three, and as they are."""
    torch.manual_seed(0)
    stock = torch.nn.Linear(1536, 200).eval()
    x = torch.randn(130, 1536) * torch.logspace(-6, 6, 1536)
    with torch.inference_mode():
        right, plain = copy.deepcopy(stock).double()(x.double()), stock(x)
        fast = hfaccel.optimize(stock, backend="torch")
        assert type(fast) is not type(stock)
        error = (fast(x) - right).abs().max().item()
    assert error <= 2 * (plain - right).abs().max().item()


def test_what_is_not_finite_stays_so():
    x = torch.randn(100, 96)
    x[3, 4], x[5, 6], x[7, 8] = math.nan, math.inf, -math.inf
    with torch.inference_mode():
        got = hfaccel.optimize(torch.nn.Linear(96, 64).eval(), backend="torch")(x)
    assert got.isfinite().all(1).logical_not().nonzero().flatten().tolist() == [3, 5, 7]


def test_the_variable_of_onednn_leaves_it_out():
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", ASK]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == " the CPU has no AMX, or programs may not use it\n"
