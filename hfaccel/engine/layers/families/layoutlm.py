"""LayoutLM: BERT whose layers are always given a mask."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Mask, Sample, added
from hfaccel.engine.layers.families.bert import BERT
from hfaccel.engine.layers.parts import Parts


class Masked(Call):
    """LayoutLM: without a mask, transformers would take its attention for causal, because the attention does
    not say otherwise. The model always passes a mask."""

    __slots__ = ()

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        return "no attention mask was passed" if mask is None else super().see(hidden, mask, unpad)

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        return [added(torch.zeros_like(padding)), added(padding)], {}


FAMILIES = (replace(BERT, name="LayoutLM", call=Masked),)
