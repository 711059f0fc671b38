"""BERT, RoBERTa and their descendants as decoders, with and without an encoder, and those of BLIP and GIT.

A config with `is_decoder` makes them decoders, one with `add_cross_attention` gives each layer a second
attention with the parts of the first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch

from hfaccel.engine.layers.call import MASK
from hfaccel.engine.layers.crossing import STATES, STATES_MASK, CrossCall, EagerCrossCall
from hfaccel.engine.layers.decoder import CACHE, DecoderCall, EagerDecoderCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.families.bert import BERT
from hfaccel.engine.layers.families.roberta_prelayernorm import PRELAYERNORM, XL


class EagerStatesFirst(EagerCrossCall):
    """BLIP: attention is eager, and the states of images come before the mask."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (STATES,)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == STATES_MASK:  # the layer leaves it unused; where it does not, the trial differs
            return ""
        return super().take_argument(hidden, name, value)


class EagerCacheNext(EagerDecoderCall):
    """GIT: attention is the module's own code. Tokens of images see each other: a prompt with an image takes
    the layer's own forward. Tokens after the prompt run in the kernels."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (MASK, CACHE)
    configured: ClassVar[bool] = False


class Alone(DecoderCall):
    """BERT without an encoder, whose states are passed by position: None."""

    __slots__ = ()
    ordered: ClassVar[tuple[str, ...]] = (MASK, STATES)


def _decoders(family: Family) -> tuple[Family, Family]:
    """Without an encoder, and with one."""
    alone = replace(family, name=f"{family.name} decoder", call=Alone)
    crossing = replace(
        alone,
        name=f"{alone.name} with an encoder",
        call=CrossCall,
        cross_attention=f"cross{family.attention}",
        cross_query=f"cross{family.query}",
        cross_key=f"cross{family.key}",
        cross_value=f"cross{family.value}",
        cross_output=f"cross{family.attention_output}",
        cross_norm=f"cross{family.attention_norm}",
    )
    return alone, crossing


ALONE, CROSSING = _decoders(BERT)
FAMILIES: tuple[Family, ...] = (
    ALONE,
    replace(ALONE, name="GIT", call=EagerCacheNext, marks=("image_patch_tokens",)),
    CROSSING,
    replace(CROSSING, name="BLIP decoder", call=EagerStatesFirst),
    *_decoders(PRELAYERNORM),
    *_decoders(XL),
)
