"""OPT, BioGPT and XGLM: positions are added to the embeddings; norms come before or, in one size of OPT,
after."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.decoder import DecoderCall, EagerDecoderCall
from hfaccel.engine.layers.families.bart import WHISPER
from hfaccel.engine.layers.families.base import Family


class OwnAttention(EagerDecoderCall):
    """XGLM: attention is the module's own code, and the states of an encoder are mostly None."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (MASK, "encoder_hidden_states")
    configured: ClassVar[bool] = False


OPT = replace(WHISPER, name="OPT", call=DecoderCall)
FAMILIES: tuple[Family, ...] = (
    OPT,
    replace(OPT, name="OPT with norms after", norm_first=False),
    replace(OPT, name="XGLM", call=OwnAttention),
)
