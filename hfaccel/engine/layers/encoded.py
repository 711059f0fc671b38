"""An encoder's keys and values, which decoder layers attend to besides those of their own tokens.

A cache keeps them from the first call of a text on; they never grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from hfaccel.engine.kernels import NUMBERS, kernels
from hfaccel.engine.layers.alike import numbers_of, repeat
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.roomed import stock_class
from hfaccel.engine.layers.rooms import layer_of
from hfaccel.native import NativePast
from hfaccel.upstream.of_transformers import PAIRS, cache_classes


class Encoded:
    """Of some layers: (batch, heads, tokens, head size) of keys and of values for each, which all have the
    same strides. `alike`: numbers of texts, the same for equal ones."""

    def __init__(self, tensors: Sequence[torch.Tensor], alike: torch.Tensor | None = None) -> None:
        self.tensors, self.alike = tensors, alike

    def native(self, columns: int, spans: torch.Tensor | None) -> NativePast:
        """The kernels' object. `spans`: which tokens of each text are seen."""
        first = self.tensors[0]
        batch, head, token, _ = first.stride()
        number, place = NUMBERS[first.dtype], 0 if spans is None else spans.data_ptr()
        return kernels().Past(columns, first.shape[2], batch, head, token, number, place)

    def addresses(self) -> tuple[int, ...]:
        return tuple([tensor.data_ptr() for tensor in self.tensors])


def pair_problem(pair: Any, index: int) -> str:
    """Why the kernels cannot use these two caches' second for the layer of this index; "" where they can."""
    if type(pair) is not PAIRS.value():
        return f"the cache is a {type(pair).__name__}"
    whole, plain, _ = cache_classes()
    cache = pair.cross_attention_cache
    if type(cache) is not whole or cache.offloading:
        return f"the cache of the encoder's tokens is a {type(cache).__name__}, or offloaded"
    layer = layer_of(cache, index)
    if stock_class(layer) is not plain:
        return f"the layer of the encoder's cache is a {type(layer).__name__}"
    holds = layer.keys is not None and layer.keys.numel() > 0
    if holds is not is_filled(pair, index):
        return "the encoder's cache is not filled as its flags say"
    return ""


def is_filled(pair: Any, index: int) -> bool:
    """Whether the second cache holds the encoder's tokens for the layer of this index."""
    return pair is not None and bool(pair.is_updated.get(index))


def length_of(pair: Any, index: int) -> int:
    """How many of the encoder's tokens it holds."""
    return int(layer_of(pair.cross_attention_cache, index).keys.shape[2])


def from_cache(pair: Any, indices: Sequence[int], shape: Sequence[int], dtype: torch.dtype) -> Encoded:
    """What the cache holds, which must have this shape: (batch, heads, head size) without the tokens."""
    layers = [layer_of(pair.cross_attention_cache, index) for index in indices]
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    first = tensors[0]
    batch, heads, size = shape
    for tensor in tensors:
        if tuple(tensor.shape) != (batch, heads, first.shape[2], size):
            raise ValueError(
                f"the encoder's cache must hold keys and values of {batch} texts, {heads} heads and {size} "
                f"numbers, but has {tuple(tensor.shape)}"
            )
    strides = first.stride()
    if all(each.dtype is dtype and each.stride() == strides for each in tensors) and strides[-1] == 1:
        return Encoded(tensors)
    return Encoded([tensor.to(dtype).contiguous() for tensor in tensors])


def from_states(
    layers: Sequence[NativeLayer], states: torch.Tensor, shape: Sequence[int], dtype: torch.dtype
) -> Encoded:
    """The layers' projections of an encoder's states (batch, tokens, their size). Texts that follow one
    another may be equal, as for beams: they are projected once."""
    batch, heads, size = shape
    tokens, alike = states.shape[1], numbers_of(states)
    texts = states if alike[-1] + 1 == batch else states[alike.diff(prepend=alike[:1] - 1) > 0]
    with torch.inference_mode(False):
        memory = torch.empty((len(layers), 2, batch, heads, tokens, size), dtype=dtype)
    with torch.no_grad():
        for layer, halves in zip(layers, memory, strict=True):
            for rows, half in zip(_projected(layer, texts), halves, strict=True):
                made = rows.view(len(texts), tokens, heads, size).transpose(1, 2)
                half.copy_(made if texts is states else made[alike])
    return Encoded(memory.flatten(0, 1).unbind(), alike)


def _projected(layer: NativeLayer, texts: torch.Tensor) -> Sequence[torch.Tensor]:
    """A layer's keys and values of these states, all heads in a row."""
    made = [linear(texts) for linear in layer.of_encoder]
    return [rows.contiguous() for rows in made[0].chunk(2, -1)] if len(made) == 1 else made


def keep(encoded: Encoded, pair: Any, indices: Sequence[int]) -> None:
    """Show them in the cache."""
    for number, index in enumerate(indices):
        layer = layer_of(pair.cross_attention_cache, index)
        keys, values = encoded.tensors[2 * number : 2 * number + 2]
        if not layer.is_initialized:
            layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
        if encoded.alike is not None:
            repeat(layer, encoded.alike)
        pair.is_updated[index] = True
