"""Whether an engine generates what the model says: its tokens are read by eager float32."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from generation_models import CONFIGURATIONS

PROMPTS, LENGTH, TOKENS = 16, 12, 4  # greedy generation from random weights soon repeats itself
Tokens = list[int]


def prompts(model: str) -> list[Tokens]:
    """Short random prompts."""
    vocabulary = CONFIGURATIONS[model]().vocab_size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1000, vocabulary, (PROMPTS, LENGTH), generator=generator).tolist()


def compare(
    module: torch.nn.Module, given: Sequence[Tokens], generated: Sequence[Tokens]
) -> dict[str, float]:
    """`agreement`: the part of the tokens that the module would choose after the same beginning.
    `regret`: how far the engine's choices lie behind the module's, in standard deviations of the logits.
    """
    tokens = torch.tensor([[*start, *end] for start, end in zip(given, generated, strict=True)])
    with torch.inference_mode():
        logits = module(tokens).logits[:, len(given[0]) - 1 : -1].float()
    chosen = tokens[:, len(given[0]) :]
    behind = logits.amax(-1) - logits.gather(-1, chosen[..., None])[..., 0]
    return {
        "agreement": round(float((logits.argmax(-1) == chosen).float().mean()), 3),
        "regret": round(float((behind / logits.std(-1)).mean()), 4),
    }
