"""The decoders of benchmarks/generation.py: shapes of published models, random weights of a fixed seed.

A weight depends on its name alone. So every version of transformers makes the same weights, and so does every
engine that converts them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen2Config, Qwen3MoeConfig
from transformers.initialization import no_init_weights

STD = 0.02
CONTEXT = 1024  # tokens that every engine has room for
CONFIGURATIONS: dict[str, Callable[[], Any]] = {
    "qwen2-0.5b": partial(
        Qwen2Config,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    ),
    "smollm-135m": partial(
        LlamaConfig,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    ),
    "qwen3-moe-0.4b": partial(
        Qwen3MoeConfig,
        hidden_size=1024,
        moe_intermediate_size=384,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        num_hidden_layers=8,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=32000,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=True,
    ),
}
# Measured where `--models` names them, against transformers alone; no bar is set.
MIXTURES = ("qwen3-moe-0.4b",)


def build(model: str) -> PreTrainedModel:
    """The model in float32, in evaluation mode."""
    with no_init_weights():
        module = AutoModelForCausalLM.from_config(CONFIGURATIONS[model](), dtype=torch.float32)
    module.tie_weights()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            _fill(name, parameter)
    return module.eval()  # type: ignore[no-any-return]


def _fill(name: str, parameter: torch.Tensor) -> None:
    if name.endswith("norm.weight"):
        parameter.fill_(1.0)
    else:
        parameter.normal_(0.0, STD, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def matrices(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights that one token reads whole: a tied embedding is read once, as the output layer."""
    return ((name, weight) for name, weight in module.named_parameters() if weight.ndim == 2)


def count_weights(module: torch.nn.Module) -> int:
    """Of experts those that a token chooses."""
    config: Any = module.config
    experts = [weight for weight in module.parameters() if weight.ndim == 3]
    chosen = sum(weight[0].numel() * config.num_experts_per_tok for weight in experts)
    return chosen + sum(weight.numel() for _, weight in matrices(module))


def prompt(model: str, length: int) -> list[int]:
    """Random tokens."""
    vocabulary = CONFIGURATIONS[model]().vocab_size
    generator = torch.Generator().manual_seed(length)
    return torch.randint(1000, vocabulary, (length,), generator=generator).tolist()
