"""Texts whose rotary positions depend on the longest text of a call are not computed with others."""

from __future__ import annotations

import math

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from hfaccel.generation.lanes import reach_of

SIZES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, vocab_size=50)
FACTORS = dict(short_factor=[1.0] * 8, long_factor=[2.0] * 8, original_max_position_embeddings=20)


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        (dict(rope_type="default"), math.inf),
        (dict(rope_type="linear", factor=2.0), math.inf),
        (dict(rope_type="dynamic", factor=2.0), 40),
        (dict(rope_type="longrope", factor=2.0, **FACTORS), 20),
    ],
)
def test_up_to_which_length(rope, tokens):
    rope = {"rope_theta": 1e4, **rope}
    reach = reach_of(LlamaForCausalLM(LlamaConfig(max_position_embeddings=40, rope_parameters=rope, **SIZES)))
    assert reach.tokens == tokens
    assert not reach.problem(20)
    assert (rope["rope_type"] in reach.problem(41)) == (tokens < math.inf)
