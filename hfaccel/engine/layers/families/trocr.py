"""TrOCR's decoder: BART's, with attention of its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import HIDDEN, Mask, Sample
from hfaccel.engine.layers.crossing import STATES_MASK, CrossCall
from hfaccel.engine.layers.decoder import EagerDecoderCall, additive
from hfaccel.engine.layers.families.bart import DECODER
from hfaccel.engine.layers.parts import Parts
from hfaccel.engine.replacements import Keywords


class OwnCross(EagerDecoderCall, CrossCall):
    """TrOCR: masks are added to scores, and a layer returns a tuple."""

    __slots__ = ()
    configured: ClassVar[bool] = False
    gives_pair: ClassVar[bool] = True

    def give(self, result: torch.Tensor) -> object:
        return (result,)

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = CrossCall.sample(layer, parts, padding, generator)
        return additive(masks), arguments

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        for mask, more in super().variants(layer, parts, masks):
            assert mask is not None
            shown = more.get(STATES_MASK)
            if shown is None:
                yield mask, more
            else:
                added = torch.where(shown, 0.0, HIDDEN).expand(-1, -1, mask.shape[2], -1)
                yield mask, {**more, STATES_MASK: added}


FAMILIES = (replace(DECODER, name="TrOCR decoder", norm_first=False, call=OwnCross),)
