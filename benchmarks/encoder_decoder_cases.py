"""What benchmarks/encoder_decoder.py times: whole calls of generate(), with random weights in bfloat16."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch

Keywords = dict[str, Any]
TEXTS, WORDS, BEAMS = 4, 256, 4  # of a summarization
FRAMES = 3000  # of 30 seconds of sound


def t5(tiny: bool) -> tuple[torch.nn.Module, Keywords]:
    """The shape of T5-base; 4 texts of 256 tokens, 4 beams, 48 new tokens."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = dict(d_model=768, d_kv=64, d_ff=3072, num_layers=12, num_heads=12)
    if tiny:
        sizes = dict(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
    model = T5ForConditionalGeneration(T5Config(vocab_size=32128, decoder_start_token_id=0, **sizes))
    ids = torch.randint(2, 32000, (TEXTS, WORDS))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "num_beams": BEAMS, **_new(48)}


def whisper(tiny: bool) -> tuple[torch.nn.Module, Keywords]:
    """The shape of Whisper-base; 30 seconds, 100 new tokens."""
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    layers, width = (2, 64) if tiny else (6, 512)
    sizes = dict(encoder_layers=layers, decoder_layers=layers, d_model=width)
    sizes |= dict(encoder_attention_heads=width // 64, decoder_attention_heads=width // 64)
    sizes |= dict(encoder_ffn_dim=4 * width, decoder_ffn_dim=4 * width)
    model = WhisperForConditionalGeneration(WhisperConfig(vocab_size=51865, **sizes))
    settings: Any = model.generation_config
    settings.suppress_tokens = settings.begin_suppress_tokens = None
    return model, {"input_features": torch.randn(1, 80, FRAMES, dtype=torch.bfloat16), **_new(100)}


def _new(tokens: int) -> Keywords:
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


MODELS = {"t5-base, 4 texts, 4 beams": t5, "whisper-base, 30 s": whisper}


def generate(model: str, threads: int, tiny: bool, optimized: bool = False) -> Callable[[], float]:
    """Seconds of one call."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    module, given = MODELS[model](tiny)
    module = module.eval().to(torch.bfloat16)
    if optimized:
        import hfaccel

        module = hfaccel.optimize(module, backend="torch", dtype=torch.bfloat16, inplace=True)

    def take() -> float:
        start = time.perf_counter()
        module.generate(**given)  # type: ignore[operator]
        return time.perf_counter() - start

    return take
