"""MarkupLM: BERT with eager attention."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Mask, Sample, added, attentions_problem
from hfaccel.engine.layers.families.bert import BERT
from hfaccel.engine.layers.parts import Parts


class Eager(Call):
    """MarkupLM: transformers implements only eager attention, which adds masks to scores, and returns the
    attention weights if asked for them."""

    __slots__ = ()
    implementation: ClassVar[str] = "eager"

    def complete(self, hidden: torch.Tensor) -> str:
        return attentions_problem() or super().complete(hidden)

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if mask is not None and not mask.is_floating_point():
            return f"the attention mask is of {mask.dtype}, which eager attention adds to the scores"
        return super().see(hidden, mask, unpad)

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        return [None, added(padding)], {}


FAMILIES = (replace(BERT, name="eager BERT", call=Eager),)
