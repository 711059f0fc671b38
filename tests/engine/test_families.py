"""Every family of encoders in every precision: fused, without a call of the stock forward, and near stock."""

from __future__ import annotations

import pytest
import torch
from encoders import SETTINGS, TEXTS, cosines, inputs, make, random_vectors, real, run
from torch import nn

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

ROUNDED = [
    pytest.param({"dtype": torch.bfloat16}, 0.999, id="bfloat16"),
    pytest.param({"quantization": "int8"}, 0.99, id="int8"),
]


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def check_fused(model):
    assert fused(model)
    assert hfaccel.report(model).stock_calls == {}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("side", ["right", "left", "none"])
def test_float32_equals_stock(name, side):
    stock, given = make(name), inputs(name, side)
    fast = hfaccel.optimize(make(name))
    expected = run(stock, given)
    torch.testing.assert_close(real(run(fast, given), given), real(expected, given), rtol=0, atol=1e-5)
    check_fused(fast)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("options", "wanted"), ROUNDED)
def test_rounded_results_are_near(name, options, wanted):
    stock, given = make(name), inputs(name)
    fast = hfaccel.optimize(stock, **options)
    near = cosines(real(run(fast, given), given), real(run(stock, given), given))
    assert near.min() > wanted
    check_fused(fast)


@pytest.mark.parametrize("name", [*TEXTS, "wav2vec2, stable norm"])
def test_padding_too_equals_stock_where_it_is_computed(name):
    for side in ("right", "left"):
        stock, given = make(name), inputs(name, side)
        fast = hfaccel.optimize(make(name), unpad=False)
        torch.testing.assert_close(run(fast, given), run(stock, given), rtol=0, atol=1e-5)
        check_fused(fast)


def test_a_sliding_window_is_obeyed():
    """ModernBERT: two layers of three see at most 64 tokens to either side."""
    stock, fast = make("ModernBERT"), hfaccel.optimize(make("ModernBERT"))
    for side in ("right", "left", "none"):
        given = inputs("ModernBERT", side, length=150)
        torch.testing.assert_close(
            real(run(fast, given), given), real(run(stock, given), given), rtol=0, atol=1e-5
        )
    check_fused(fast)


@pytest.mark.parametrize("unpad", [True, False])
def test_a_causal_text_tower(unpad):
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = dict(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, vocab_size=500
    )
    torch.manual_seed(0)
    stock = random_vectors(
        CLIPTextModel(CLIPTextConfig(**sizes, bos_token_id=1, eos_token_id=2, pad_token_id=0))
    )
    given = inputs("BERT", "right")
    expected = run(stock, given)
    fast, real = hfaccel.optimize(stock, unpad=unpad), given["attention_mask"].bool()
    got = run(fast, given)
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-5)
    if not unpad:
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert fused(fast) and not hfaccel.report(fast).stock_calls


def test_an_encoder_and_a_decoder_of_one_class():
    """In either order each is fused as what it is."""
    from conftest import make_bert

    class Both(nn.Module):
        def __init__(self, *parts):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, **given):
            return (sum(part(**given)[0] for part in self.parts),)

    given = inputs("BERT")
    for order in (1, -1):
        model = Both(*[make_bert(is_decoder=decoder) for decoder in (False, True)][::order]).eval()
        expected = run(model, given)
        fast = hfaccel.optimize(model)
        torch.testing.assert_close(real(run(fast, given), given), real(expected, given), rtol=0, atol=1e-5)
        names = [layer.hfaccel_family.name for layer in fused(fast)]
        assert names == ["BERT", "BERT", "BERT decoder", "BERT decoder"][::order]
        assert hfaccel.report(fast).stock_calls == {}


@pytest.mark.parametrize(
    "sizes",
    [
        dict(hidden_size=66, num_attention_heads=3, intermediate_size=133),
        dict(hidden_size=70, num_attention_heads=5, intermediate_size=65),
        dict(hidden_size=192, num_attention_heads=2, intermediate_size=100),
        dict(hidden_size=256, num_attention_heads=2, intermediate_size=70),
        dict(hidden_size=128, num_attention_heads=64, intermediate_size=64),
    ],
)
def test_odd_sizes(sizes):
    from conftest import make_bert

    stock, given = random_vectors(make_bert(**sizes)), inputs("BERT")
    expected = real(run(stock, given), given)
    for options in ({"dtype": torch.bfloat16}, {"quantization": "int8"}, {}):
        fast = hfaccel.optimize(stock, **options)
        got = real(run(fast, given), given)
        assert cosines(got, expected).min() > 0.99
        if not options:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        check_fused(fast)


def test_heads_of_one_number_are_left_alone():
    from conftest import make_bert

    stock, given = make_bert(hidden_size=64, num_attention_heads=64), inputs("BERT")
    fast = hfaccel.optimize(stock, dtype=torch.bfloat16)
    assert not fused(fast)
    assert cosines(run(fast, given), run(stock, given)).min() > 0.999
