"""OPT: positions are added to the embeddings; norms come before or, in one size, after."""

from __future__ import annotations

from dataclasses import replace

from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.families.bart import WHISPER
from hfaccel.engine.layers.families.base import Family

OPT = replace(WHISPER, name="OPT", call=DecoderCall)
FAMILIES: tuple[Family, ...] = (OPT, replace(OPT, name="OPT with norms after", norm_first=False))
