"""Whisper with timestamps, of which those of words come from cross-attention."""

from __future__ import annotations

import copy

import pytest
from models import optimized, prompt, stock
from same import assert_equal

import hfaccel

pytestmark = pytest.mark.usefixtures("one_thread")
STAMPS = 180  # from this token on, each is a time


def settings(model):
    """As a checkpoint of Whisper has them."""
    config = copy.deepcopy(model.generation_config)
    config.no_timestamps_token_id, config.max_initial_timestamp_index = STAMPS - 1, 10
    config.alignment_heads, config.is_multilingual = [[0, 1], [1, 3]], False
    config.decoder_start_token_id, config.prev_sot_token_id = 1, 3
    return config


def heard(model, **more):
    given = dict(generation_config=settings(model), max_new_tokens=12, **more)
    return model.generate(**prompt("Whisper", 2), **given)


def test_timestamps():
    expected, got = (
        heard(model, return_timestamps=True) for model in (stock("Whisper"), optimized("Whisper"))
    )
    assert_equal(got, expected)
    assert (expected >= STAMPS).any()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_times_of_words(implementation):
    """They need the weights of attention, which stock gives with eager attention."""
    results = []
    for model in (copy.deepcopy(stock("Whisper")), hfaccel.optimize(copy.deepcopy(stock("Whisper")))):
        model.set_attn_implementation(implementation)
        try:
            found = heard(model, return_timestamps=True, return_token_timestamps=True)
            results.append([found["sequences"], found["token_timestamps"]])
        except Exception as error:  # noqa: BLE001 (whatever stock raises, both must)
            results.append(repr(error))
    assert_equal(results[1], results[0])
    assert implementation == "sdpa" or not isinstance(results[0], str)
