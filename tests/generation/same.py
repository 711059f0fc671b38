"""Whether two trees make the same of the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import NEW, optimized, prompt, stock
from transformers import Cache

CLOSE = 1e-4  # for logits and scores, absolute and relative


def generate(model: Any, name: str, count: int = 3, **settings: Any) -> Any:
    """Greedy if `settings` say nothing else. What they replace in the prompt may be None."""
    torch.manual_seed(0)
    given = {"max_new_tokens": NEW, "do_sample": False, **prompt(name, count), **settings}
    return model.generate(**{key: value for key, value in given.items() if value is not None})


def assert_same(name: str, count: int = 3, **settings: Any) -> Any:
    """Both generate the same; returns what stock does."""
    expected = generate(stock(name), name, count, **settings)
    assert_equal(generate(optimized(name), name, count, **settings), expected)
    return expected


def assert_both(name: str, use: Callable[[Any], Any]) -> Any:
    """`use(model)` returns the same for both; returns what stock gives."""
    expected = use(stock(name))
    assert_equal(use(optimized(name)), expected)
    return expected


def assert_equal(got: Any, expected: Any) -> None:
    """Tokens exactly, logits and scores close, caches in what they hold."""
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        close = dict(rtol=CLOSE, atol=CLOSE) if expected.is_floating_point() else dict(rtol=0, atol=0)
        torch.testing.assert_close(got, expected, **close)
    elif isinstance(expected, Cache):
        assert_equal(held(got), held(expected))
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        assert_equal([*got.values()], [*expected.values()])
    elif isinstance(expected, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)
    else:
        assert got == expected


def held(cache: Any) -> list[Any]:
    """What a cache says and holds, layer by layer; not of an encoder, whose padding hfaccel leaves out."""
    cache = getattr(cache, "self_attention_cache", cache)
    layers = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
    return [cache.get_seq_length(), cache.is_sliding, layers]


def outcome(use: Callable[[Any], Any], model: Any) -> Any:
    """What `use(model)` returns, or the type of what it raises."""
    try:
        return use(model)
    except Exception as error:  # noqa: BLE001 (whatever transformers raises, both must)
        return type(error).__name__
