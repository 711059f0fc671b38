"""AMX multiplies what vector instructions multiply elsewhere: the results agree, and it can be left out."""

import subprocess
import sys

import pytest
import torch
from transformers import BertConfig, BertModel

import hfaccel
from hfaccel import native
from hfaccel.engine.kernels import amx_problem

pytestmark = pytest.mark.skipif(bool(amx_problem()), reason=f"no AMX here: {amx_problem()}")

ASK = (
    "from hfaccel.engine.kernels import amx_problem, kernels_problem; print(kernels_problem(), amx_problem())"
)


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
    ("options", "tolerance"), [({"dtype": torch.bfloat16}, 2e-2), ({"quantization": "int8"}, 1e-4)]
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


def test_the_variable_of_onednn_leaves_it_out():
    environment = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PATH": "/usr/bin"}
    command = [sys.executable, "-c", ASK]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == " the CPU has no AMX, or programs may not use it\n"
