"""Layers that are called otherwise than most: what they take, what they give, how they are tried.

Only for widely used models whose attention is not transformers' own, or gets positions through the layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.capturing import collected
from hfaccel.engine.calls.ragged import read_mask, whole
from hfaccel.engine.layers.call import Call, Mask
from hfaccel.engine.layers.distances import bucket_index, buckets_of
from hfaccel.engine.layers.families import Adapter, Family, head_size

if TYPE_CHECKING:
    from hfaccel.engine.layers.layer import Plan

HIDDEN = torch.finfo(torch.float32).min


class PassedBias(Call):
    """MPNet: every layer is given the same bias for its scores, (1 or batch, heads, length, length)."""

    __slots__ = ()
    positional: ClassVar[tuple[str, ...]] = ("position_bias",)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        return self._bias(hidden, value) if name == "position_bias" else f"{name} was passed"

    def _bias(self, hidden: torch.Tensor, bias: torch.Tensor) -> str:
        length = hidden.shape[1]
        if bias.dim() != 4 or bias.shape[-2:] != (length, length):
            return f"the position bias has the shape {tuple(bias.shape)}"
        if bias.shape[0] > 1 and bias.stride(0) != 0 and not torch.equal(bias, bias[:1].expand_as(bias)):
            return "the position bias differs between sequences"
        self.bias = bias[0].float().contiguous()
        return ""

    def give(self, result: torch.Tensor) -> Any:
        return (result,)

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        bias = _random_bias(layer, family, padding, generator)
        return [None, _added(padding)], {"position_bias": bias.expand(len(padding), -1, -1, -1)}


class FirstBias(PassedBias):
    """T5: the first layer makes the bias and hands it on: (hidden states, bias, None)."""

    __slots__ = ("passed",)
    alike: ClassVar[bool] = False

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name == "position_bias":
            self.passed = value
        return super().take_argument(hidden, name, value)

    def complete(self, hidden: torch.Tensor) -> str:
        if self.bias is None:
            self.passed = _made_bias(self.plan.attention, hidden)
            return self._bias(hidden, self.passed)
        return ""

    def give(self, result: torch.Tensor) -> Any:
        return result, self.passed, None

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        masks, arguments = Call.sample(layer, family, padding, generator)
        if not layer.get_submodule(family.attention).has_relative_attention_bias:
            arguments["position_bias"] = _random_bias(layer, family, padding, generator)
        return masks, arguments


class OwnBias(FirstBias):
    """UMT5: every layer makes a bias of its own, and gives hidden states alone."""

    __slots__ = ()
    positional: ClassVar[tuple[str, ...]] = ()

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        return f"{name} was passed"

    def give(self, result: torch.Tensor) -> Any:
        return result

    sample = staticmethod(Call.sample)


def _made_bias(attention: Any, hidden: torch.Tensor) -> torch.Tensor:
    """(1, heads, length, length). It depends on distances alone: the module is asked for one query, from
    which all keys are seen, and the other queries see a part of the same row."""
    length = hidden.shape[1]
    if not attention.has_relative_attention_bias:
        return hidden.new_zeros(1, attention.n_heads, length, length)
    row = attention.compute_bias(1, 2 * length - 1, past_seen_tokens=length - 1)
    windows: torch.Tensor = row[:, :, 0].unfold(-1, length, 1)
    return windows.flip(2).contiguous()


def _random_bias(
    layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    width = family.linears(layer)[0].out_features
    heads = width // (head_size(layer.get_submodule(family.attention)) or 1)
    return torch.randn(1, heads, padding.shape[1], padding.shape[1], generator=generator)


class Disentangled(Call):
    """DeBERTa-v2: scores of distances beside those of contents, and a mask that hides padding from
    everything and everything from padding."""

    __slots__ = ("given", "kept")
    positional: ClassVar[tuple[str, ...]] = (
        "query_states",
        "relative_pos",
        "rel_embeddings",
        "output_attentions",
    )
    alike: ClassVar[bool] = False  # each has projections of the distances of its own

    def __init__(self, plan: Plan, family: Family) -> None:
        super().__init__(plan, family)
        self.given: dict[str, torch.Tensor] = {}

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name not in ("relative_pos", "rel_embeddings"):
            return f"{name} was passed"
        self.given[name] = value
        return ""

    def complete(self, hidden: torch.Tensor) -> str:
        attention, plan, length = self.plan.attention, self.plan, hidden.shape[1]
        if not attention.relative_attention or not {"c2p", "p2c"} & set(attention.pos_att_type):
            return ""
        if len(self.given) < 2:
            return "no relative positions were passed"
        distances, embeddings = self.given["relative_pos"], self.given["rel_embeddings"]
        if embeddings.dim() != 2 or len(embeddings) < 2 * attention.pos_ebd_size:
            return f"the relative embeddings have the shape {tuple(embeddings.shape)}"
        index = bucket_index(distances, length, attention.pos_ebd_size)
        if isinstance(index, str):
            return index
        buckets = buckets_of(attention, embeddings, plan.buckets, plan.attention_kind)
        self.relative = buckets.native(index, length - 1)
        self.kept, plan.buckets = (index, buckets), buckets
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if mask is None:
            return "no attention mask was passed"
        batch, length, _ = hidden.shape
        found = read_mask(mask, batch, length, unpad=unpad, pairs=True)
        if isinstance(found, str):
            return found
        self.sequences = found
        return ""

    def give(self, result: torch.Tensor) -> Any:
        return result, None

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        real, length = (~padding).long(), padding.shape[1]
        masks: list[Mask] = [
            each[:, None, None, :] * each[:, None, :, None] for each in (torch.ones_like(real), real)
        ]
        attention: Any = layer.get_submodule(family.attention)
        if not attention.relative_attention:
            return masks, {}
        place, size = torch.arange(length), family.linears(layer)[0].in_features
        distances = (place[:, None] - place[None, :]).clamp(-5, 5)[None]
        embeddings = torch.randn(2 * attention.pos_ebd_size, size, generator=generator)
        return masks, {"relative_pos": distances, "rel_embeddings": embeddings}


class Unmasked(Call):
    """YOLOS: images have no padding, and a layer's forward takes no mask."""

    __slots__ = ()
    masked: ClassVar[bool] = False

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        return super().see(hidden, mask, unpad) if mask is None else "an attention mask was passed"

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        return [None], {}


class Masked(Call):
    """LayoutLM: its attention does not say that it is not causal. Without a mask transformers takes it for
    causal, so that a mask is always passed."""

    __slots__ = ()

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        return "no attention mask was passed" if mask is None else super().see(hidden, mask, unpad)

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        return [_added(torch.zeros_like(padding)), _added(padding)], {}


class Eager(Call):
    """MarkupLM: transformers has no other attention for it than eager, which adds masks to scores, and gives
    them back where attentions are asked for."""

    __slots__ = ()
    implementation: ClassVar[str] = "eager"

    def complete(self, hidden: torch.Tensor) -> str:
        names = collected()
        if names is None or any(name.endswith("attentions") for name in names):
            return "attentions are collected"
        return super().complete(hidden)

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        if mask is not None and not mask.is_floating_point():
            return f"the attention mask is of {mask.dtype}, which eager attention adds to the scores"
        return super().see(hidden, mask, unpad)

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        return [None, _added(padding)], {}


class EagerUnmasked(Unmasked, Eager):
    """BLIP's images, which have no padding."""

    __slots__ = ()


class TextBias(Eager):
    """LayoutLMv3: biases of distances between words and between their places on a page, which differ from
    text to text. The mask, which has holes where an image follows a padded text, is added to them. Texts run
    one after another: they are long."""

    __slots__ = ("biases", "given")
    unpads: ClassVar[bool] = False

    def __init__(self, plan: Plan, family: Family) -> None:
        super().__init__(plan, family)
        self.given: dict[str, torch.Tensor] = {}
        self.biases: torch.Tensor  # (batch, heads, length, length)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        if name not in BIASES:
            return f"{name} was passed"
        self.given[name] = value
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        batch, length, _ = hidden.shape
        attention: Any = self.plan.attention
        names = [BIASES[0]] if attention.has_relative_attention_bias else []
        if names and attention.has_spatial_attention_bias:
            names = [*BIASES]
        if any(name not in self.given for name in names):
            return "no relative positions were passed"
        heads = attention.num_attention_heads
        bias = torch.zeros(batch, heads, length, length)
        shape = bias.shape
        for name in names:
            if not _fits(self.given[name], shape):
                return f"{name} has the shape {tuple(self.given[name].shape)}"
            bias += self.given[name]
        bias /= math.sqrt(head_size(attention) or 1)
        if mask is not None:
            if not mask.is_floating_point() or not _fits(mask, shape):
                return f"the attention mask is of {mask.dtype} and has the shape {tuple(mask.shape)}"
            bias += mask
        self.biases, self.sequences = bias, whole(1, length)
        return ""

    def compute(self, layers: tuple[object, ...], rows: torch.Tensor, output: torch.Tensor) -> None:
        for number, bias in enumerate(self.biases):
            self.bias = bias
            super().compute(layers, rows[number : number + 1], output[number : number + 1])

    @staticmethod
    def sample(
        layer: nn.Module, family: Family, padding: torch.Tensor, generator: torch.Generator
    ) -> tuple[list[Mask], dict[str, Any]]:
        biases = [
            torch.cat([_random_bias(layer, family, padding, generator) for _ in padding]) for _ in BIASES
        ]
        return [None, _added(padding)], dict(zip(BIASES, biases, strict=True))


BIASES = ("rel_pos", "rel_2d_pos")


def _fits(tensor: torch.Tensor, shape: torch.Size) -> bool:
    """Whether it can be added to what has this shape, (batch, heads, length, length)."""
    return tensor.dim() == 4 and all(
        each in (1, size) for each, size in zip(tensor.shape, shape, strict=True)
    )


def _added(padding: torch.Tensor) -> torch.Tensor:
    """The mask (batch, 1, 1, length) that hides these when it is added to scores."""
    return torch.where(padding, HIDDEN, 0.0)[:, None, None, :]


# How layers of each adapter are called.
CALLS: dict[Adapter, type[Call]] = {
    Adapter.NONE: Call,
    Adapter.MPNET: PassedBias,
    Adapter.T5: FirstBias,
    Adapter.UMT5: OwnBias,
    Adapter.DEBERTA: Disentangled,
    Adapter.UNMASKED: Unmasked,
    Adapter.MASKED: Masked,
    Adapter.EAGER: Eager,
    Adapter.EAGER_UNMASKED: EagerUnmasked,
    Adapter.BIASED: TextBias,
}
