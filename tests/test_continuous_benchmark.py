"""benchmarks/continuous.py: its arithmetic and bars. No times are taken."""

from __future__ import annotations

import pytest

import continuous
import continuous_engines as engines


def test_bars():
    rows = [
        continuous.row("small", engines.ONE_BY_ONE, [10.0, 12.0, 11.0]),
        continuous.row("small", engines.CONTINUOUS, [4.0, 2.0, 3.0]),
        continuous.row("small", "hfaccel bf16", [2.0, 2.0, 1.0]),
        {"case": "small", "engine": "hfaccel int8-weight-only", "failed": "no memory"},
    ]
    assert rows[0]["tokens_per_second"] == round(sum(engines.NEW) / 11, 1)
    assert [(told["measured"], told["bar"]) for told in continuous.judged(rows)] == [(6.0, 5.0), (2.0, 2.0)]


@pytest.mark.parametrize("engine", engines.ENGINES)
def test_every_engine_answers(engine, monkeypatch):
    """On a model of its own, with the lengths of the benchmark divided by 16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)

    def build(model):
        return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=2048, eos_token_id=None)).eval()

    monkeypatch.setattr(engines, "build", build)
    monkeypatch.setattr(engines, "PROMPTS", tuple(length // 16 for length in engines.PROMPTS))
    monkeypatch.setattr(engines, "NEW", tuple(count // 16 for count in engines.NEW))
    monkeypatch.setattr(engines, "prompt", lambda model, length: [*range(1000, 1000 + length)])
    if engine == engines.CONTINUOUS:
        pytest.skip("its thread would run until the tests end")
    assert engines.serve(engine, "small")()["seconds"] > 0
