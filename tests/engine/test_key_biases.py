"""Decoders whose scores have a bias for each key (ALiBi): wherever a text begins, in every form of a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_decoder_families import make_decoder

import hfaccel
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

LOWEST = torch.finfo(torch.float32).min
NAMES = ["BLOOM", "MPT", "Falcon with ALiBi"]
IDS = torch.randint(1, 200, (3, 20), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones(3, 20, dtype=torch.long)
PADDED[0, :7] = 0
PADDED[2, :1] = 0


def logits_of_pieces(model: Any, mask: torch.Tensor | None, *lengths: int) -> torch.Tensor:
    """Of one call after another, each with as many further tokens."""
    cache, logits, end = None, [], 0
    for length in lengths:
        begin, end = end, end + length
        shown = None if mask is None else mask[:, :end]
        with torch.inference_mode():
            result = model(IDS[:, begin:end], attention_mask=shown, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        logits.append(result.logits)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("mask", [None, PADDED, PADDED.flip(1)], ids=["whole", "left", "right"])
@pytest.mark.parametrize("name", NAMES)
def test_prompts_and_tokens_behind_them_see_the_biases_of_their_keys(name, mask):
    model = make_decoder(name)
    fast = hfaccel.optimize(model)
    for lengths in ((20,), (11, 1, 1, 3, 4)):  # several tokens with a past, more than are read where they lie
        expected, got = (logits_of_pieces(each, mask, *lengths) for each in (model, fast))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert not hfaccel.report(fast).stock_calls


def test_biases_count():
    """The other tests would not notice that small ones are left out."""
    fast = hfaccel.optimize(make_decoder("BLOOM"))
    layer, hidden = fast.transformer.h[0], torch.randn(1, 4, 96)
    mask, bias = (
        torch.zeros(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1) > 0, LOWEST),
        torch.rand(6, 1, 4),
    )
    with torch.inference_mode():
        one, other = (layer(hidden, alibi=factor * bias, attention_mask=mask)[0] for factor in (0, 9))
    assert not torch.allclose(one, other, rtol=0.1)
    assert not hfaccel.report(fast).stock_calls


def test_keys_beyond_the_table_raise_as_stock_does():
    fast = hfaccel.optimize(make_decoder("MPT"))  # whose table is for 64
    with torch.inference_mode(), pytest.raises(RuntimeError, match="size of tensor"):
        fast(torch.ones(1, 65, dtype=torch.long))


def test_a_mask_with_biases_of_pairs_takes_the_own_forward():
    model = make_decoder("Falcon with ALiBi")
    fast = hfaccel.optimize(model)
    hidden, mask, angles = torch.randn(1, 4, 64), torch.randn(1, 4, 4, 4), torch.randn(2, 1, 4, 16)
    given = {"alibi": mask[:, :, -1:], "attention_mask": mask, "position_embeddings": tuple(angles)}
    with torch.inference_mode():
        expected, got = (each.transformer.h[0](hidden, **given)[0] for each in (model, fast))
    torch.testing.assert_close(got, expected)
    assert "other biases" in next(iter(hfaccel.report(fast).stock_calls))
