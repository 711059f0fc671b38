"""DeBERTa-v2 and v3, whose scores also depend on the distances between tokens."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.layers.call import Call, Mask, Sample
from hfaccel.engine.layers.distances import bucket_index, buckets_of, settle
from hfaccel.engine.layers.families.base import Family
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts


class Disentangled(Call):
    """DeBERTa-v2: scores of distances are added to those of contents, and the mask hides padding from all
    tokens and all tokens from padding."""

    __slots__ = ("given", "kept")
    configured: ClassVar[bool] = False
    positional: ClassVar[tuple[str, ...]] = (
        "query_states",
        "relative_pos",
        "rel_embeddings",
        "output_attentions",
    )
    alike: ClassVar[bool] = False  # each layer projects the distances with its own weights

    def __init__(self, layer: NativeLayer) -> None:
        super().__init__(layer)
        self.given: dict[str, torch.Tensor] = {}

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name not in ("relative_pos", "rel_embeddings"):
            return f"{name} was passed"
        self.given[name] = value
        return ""

    def complete(self, hidden: torch.Tensor) -> str:
        layer, attention, length = self.layer, self.layer.attention, hidden.shape[1]
        if not attention.relative_attention or not {"c2p", "p2c"} & set(attention.pos_att_type):
            return ""
        if len(self.given) < 2:
            return "no relative positions were passed"
        distances, embeddings = self.given["relative_pos"], self.given["rel_embeddings"]
        if embeddings.dim() != 2 or len(embeddings) < 2 * attention.pos_ebd_size:
            return f"the relative embeddings have the shape {tuple(embeddings.shape)}"
        wanted = length, attention.pos_ebd_size
        index = layer.seen.distances.get(distances, wanted, lambda: bucket_index(distances, *wanted))
        if isinstance(index, str):
            return index
        own = layer.buckets
        settled = layer.seen.embeddings.get(embeddings, (), lambda: settle(embeddings, own))
        layer.buckets = buckets_of(attention, settled, own, layer.attention_kind)
        self.relative = layer.buckets.native(index, length - 1)
        self.kept = index, layer.buckets
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if mask is None:
            return "no attention mask was passed"
        found = self.sequences_of(mask, hidden, unpad, pairs=True)
        if isinstance(found, str):
            return found
        self.sequences = found
        return ""

    def give(self, result: torch.Tensor) -> object:
        return result, None

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        real, length = (~padding).long(), padding.shape[1]
        masks: list[Mask] = [
            each[:, None, None, :] * each[:, None, :, None] for each in (torch.ones_like(real), real)
        ]
        attention: Any = layer.get_submodule(parts.attention)
        if not attention.relative_attention:
            return masks, {}
        place, size = torch.arange(length), parts.linears(layer)[0].in_features
        distances = (place[:, None] - place[None, :]).clamp(-5, 5)[None]
        embeddings = torch.randn(2 * attention.pos_ebd_size, size, generator=generator)
        return masks, {"relative_pos": distances, "rel_embeddings": embeddings}


FAMILIES = (
    Family(
        name="DeBERTa",
        attention="attention.self",
        query="attention.self.query_proj",
        key="attention.self.key_proj",
        value="attention.self.value_proj",
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up="intermediate.dense",
        activation="intermediate.intermediate_act_fn",
        down="output.dense",
        output_norm="output.LayerNorm",
        call=Disentangled,
    ),
)
