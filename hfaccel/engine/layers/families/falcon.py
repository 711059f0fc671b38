"""Falcon: a joint projection, key by key; rotary positions, or a bias for the scores of each key (ALiBi)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import HIDDEN, Mask, Sample
from hfaccel.engine.layers.decoder import DecoderCall, EagerDecoderCall, additive
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bloom import BLOOM, Alibi
from hfaccel.engine.layers.parts import Parts
from hfaccel.engine.replacements import Keywords


class Either(Alibi):
    """Falcon: rotary positions are passed, and count where `alibi` is None. Where it is not, the mask (batch,
    heads, queries, keys) is the bias, or the lowest number where a token is hidden."""

    __slots__ = ()
    implementation: ClassVar[str] = "sdpa"
    configured: ClassVar[bool] = True

    def complete(self, hidden: torch.Tensor) -> str:
        problem = DecoderCall.complete(self, hidden)
        if self.alibi is not None:
            self.cosines = self.sines = None
        return problem

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if self.alibi is None:
            return DecoderCall.see(self, hidden, mask, unpad)
        heads = self.layer.query_heads
        if mask is None or not mask.is_floating_point() or mask.dim() != 4 or mask.shape[1] != heads:
            return "no attention mask was passed that adds a bias to the scores of each head"
        hides, bias = mask[:, :1] <= HIDDEN / 2, mask[:, :, -1:]  # the last query sees all that any sees
        if not torch.equal(mask, bias.masked_fill(hides, torch.finfo(mask.dtype).min)):
            return "the attention mask adds other biases than one for each key"
        self.bias = bias.float().contiguous()
        return super().see(hidden, torch.where(hides, HIDDEN, 0.0), unpad)

    # For the trial of such a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = DecoderCall.sample(layer, parts, padding, generator)
        return masks, arguments | {"alibi": None}

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        yield from super(EagerDecoderCall, cls).variants(layer, parts, masks)
        yield from super().variants(layer, parts, additive(masks))

    @classmethod
    def sampled(cls, mask: torch.Tensor, bias: torch.Tensor, more: Keywords) -> tuple[Mask, Keywords]:
        return torch.where(mask < 0, HIDDEN, bias), more | {"alibi": bias}


FALCON = replace(
    BLOOM,
    name="Falcon",
    activation="mlp.act",
    output_norm="input_layernorm",
    parallel=True,
    rotary=True,
    call=Either,
)
# A layer with more norms has the parts of one with fewer: what has most is tried first.
FAMILIES: tuple[Family, ...] = (
    replace(FALCON, name="Falcon with two norms", attention_norm="ln_attn", output_norm="ln_mlp"),
    replace(FALCON, name="Falcon in sequence", output_norm="post_attention_layernorm", parallel=False),
    FALCON,
)
