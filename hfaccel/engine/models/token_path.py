"""What a language model computes for a token besides its layers, in a few fields: the parts before and behind
them, as calls of the model show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.parts import window
from hfaccel.engine.layers.stack import FusedDecoder
from hfaccel.engine.models.fast_path import NoFastPath, ordinary_ids
from hfaccel.engine.norms import NormKind, norm_kind
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.native import NativeRotary
from hfaccel.replacement import shadow

VARYING = frozenset(("longrope", "dynamic"))  # kinds of rotary positions that depend on the length
KNOWN = (NormKind.LAYER, NormKind.RMS, NormKind.RMS_ABOVE_ONE, NormKind.LAYER_ABOVE_ONE)


@dataclass(frozen=True)
class TokenPath:
    """logits = head(norm(layers(embedding(ids)))); the layers are given what `rotary` makes of positions."""

    embedding: nn.Module
    decoder: FusedDecoder
    rotary: nn.Module
    norm: nn.Module
    head: PackedModule

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder._modules[self.decoder.hfaccel_list]
        assert isinstance(layers, nn.ModuleList)
        return layers


class _Recorder:
    """Stands in for all layers: notes what they are given, and gives numbers that are recognized."""

    def __init__(self) -> None:
        self.hidden: torch.Tensor | None = None
        self.given: dict[str, Any] = {}
        self.gave = torch.empty(0)

    def __call__(self, hidden: torch.Tensor, *args: object, **kwargs: Any) -> torch.Tensor:
        self.hidden, self.given = hidden, kwargs
        self.gave = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(0)).to(hidden.dtype)
        return self.gave


def token_path_of(model: Any) -> TokenPath:
    """The path of a model with a head. Raises NoFastPath."""
    decoders = [module for module in model.modules() if isinstance(module, FusedDecoder)]
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if len(decoders) != 1 or not isinstance(head, PackedModule):
        raise NoFastPath("it has no packed head over one fused decoder")
    (decoder,) = decoders
    layers: Any = decoder._modules[decoder.hfaccel_list]
    family = layers[0].hfaccel_family
    if any(window(each.get_submodule(family.attention)) >= 0 for each in layers):
        raise NoFastPath("its layers see through a window")
    if family.call is not DecoderCall or not family.rotary:
        raise NoFastPath("its layers are given more than hidden states, rotary positions and a cache")
    recorder, ids = _Recorder(), ordinary_ids(model, 1, 5)
    with torch.inference_mode():
        alone = shadow(decoder, {decoder.hfaccel_list: [recorder]})
        result = decoder.hfaccel_original.forward(alone, input_ids=ids, use_cache=False)
        if recorder.hidden is None or not torch.equal(recorder.hidden, embedding(ids)):
            raise NoFastPath("its layers are not given the embeddings of its ids")
        rotary = _rotary(decoder, recorder)
        norm = _norm(decoder, recorder.gave, result.last_hidden_state)
    return TokenPath(embedding, decoder, rotary, norm, head)


def _rotary(decoder: nn.Module, recorder: _Recorder) -> nn.Module:
    """The part that made the cosines and sines."""
    given, hidden = recorder.given.get("position_embeddings"), recorder.hidden
    assert hidden is not None
    for part in decoder.children():
        if next(part.parameters(), None) is not None or given is None or not _is_steady(part):
            continue
        made = part.forward(hidden, position_ids=torch.arange(hidden.shape[1])[None])
        if len(made) == len(given) == 2 and all(map(torch.equal, made, given)):
            return part
    raise NoFastPath("its rotary positions depend on the length of the text, or on more than positions")


def _is_steady(part: nn.Module) -> bool:
    kind = getattr(part, "rope_type", None)
    return isinstance(kind, str) and kind not in VARYING


def _norm(decoder: nn.Module, given: torch.Tensor, made: torch.Tensor) -> nn.Module:
    """The part between the layers and the result."""
    for part in decoder.children():
        if norm_kind(part) in KNOWN and torch.equal(part.forward(given), made):
            return part
    raise NoFastPath("its result is not a norm of what its layers give")


class Positions:
    """Cosines and sines of all positions up to some, computed at once by the model's own part."""

    LEAST = 512

    def __init__(self, rotary: nn.Module, dtype: torch.dtype) -> None:
        self.rotary, self.dtype = rotary, dtype
        buffers = [(name, each) for name, each in rotary._buffers.items() if each is not None]
        self._buffers = [(name, each, each._version) for name, each in buffers]
        self._tables: tuple[torch.Tensor, torch.Tensor] | None = None

    def holds(self) -> bool:
        """Whether the part would still give the same."""
        own = self.rotary._buffers
        return all(own.get(name) is each and each._version == seen for name, each, seen in self._buffers)

    def at(self, position: int) -> NativeRotary:
        """Of one position, for all texts."""
        if self._tables is None or position >= len(self._tables[0]):
            self._tables = self._computed(max(self.LEAST, 2 * position))
        cosines, sines = self._tables
        size = cosines.shape[1]
        place = 4 * position * size
        return kernels().Rotary(cosines.data_ptr() + place, sines.data_ptr() + place, 1, size)

    def _computed(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        like = torch.empty(1, 1, 1, dtype=self.dtype)
        with torch.no_grad():
            cosines, sines = self.rotary.forward(like, position_ids=torch.arange(count)[None])
        return cosines[0].float().contiguous(), sines[0].float().contiguous()
