"""TrOCR's decoder: BART's, with attention of its own, as the decoders of LED and MVP have it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch

from hfaccel.engine.layers.crossing import EagerCrossCall
from hfaccel.engine.layers.families.bart import DECODER
from hfaccel.engine.layers.families.base import Family


class OwnCross(EagerCrossCall):
    """TrOCR: attention is the module's own code, and a layer returns a tuple."""

    __slots__ = ()
    configured: ClassVar[bool] = False
    gives_pair: ClassVar[bool] = True

    def give(self, result: torch.Tensor) -> object:
        return (result,)


FAMILIES: tuple[Family, ...] = (replace(DECODER, name="TrOCR decoder", norm_first=False, call=OwnCross),)
