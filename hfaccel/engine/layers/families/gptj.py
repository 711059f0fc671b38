"""GPT-J and CodeGen, whose attention looks up its rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import HARMLESS_ARGUMENTS, Sample
from hfaccel.engine.layers.decoder import EagerDecoderCall
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.parts import Parts


class LookedUp(EagerDecoderCall):
    """GPT-J: each layer is given the numbers of positions, and has a table of sines and cosines."""

    __slots__ = ()
    cache_name: ClassVar[str] = "layer_past"
    gives_pair: ClassVar[bool] = True
    harmless: ClassVar[frozenset[str]] = HARMLESS_ARGUMENTS - {"position_ids"}

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name != "position_ids":
            return super().take_argument(hidden, name, value)
        table = self.layer.attention.embed_positions
        if not 0 <= int(value.min()) <= int(value.max()) < len(table):
            return "a position is beyond the table"
        sines, cosines = table[value].chunk(2, -1)
        return self.rotate(hidden, (each.repeat_interleave(2, -1) for each in (cosines, sines)))

    def complete(self, hidden: torch.Tensor) -> str:
        return "no position_ids were passed" if self.cosines is None else super().complete(hidden)

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        masks, arguments = EagerDecoderCall.sample(layer, parts, padding, generator)
        places = len(layer.get_submodule(parts.attention).embed_positions)  # type: ignore[arg-type]
        return masks, arguments | {"position_ids": (torch.arange(padding.shape[1])[None] + 2) % places}


class WithoutConfig(LookedUp):
    """CodeGen: attention is the module's own code."""

    __slots__ = ()
    configured: ClassVar[bool] = False


GPTJ = Family(
    name="GPT-J",
    attention="attn",
    query="attn.q_proj",
    key="attn.k_proj",
    value="attn.v_proj",
    attention_output="attn.out_proj",
    attention_norm="ln_1",
    up="mlp.fc_in",
    activation="mlp.act",
    down="mlp.fc_out",
    output_norm="ln_1",
    norm_first=True,
    parallel=True,
    pairs=True,
    call=LookedUp,
)
FAMILIES = (
    GPTJ,
    replace(
        GPTJ,
        name="CodeGen",
        query="",
        key="",
        value="",
        qkv="attn.qkv_proj",
        groups=4,  # it was trained on as many devices
        values_first=True,
        call=WithoutConfig,
    ),
)
