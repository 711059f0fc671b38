"""One call of a fused layer: what it was given, and the kernels' part of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.ragged import Sequences, read_mask, whole
from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import Parts, head_size, inputs_of, outputs_of, rotary_size
from hfaccel.engine.replacements import Arguments, Keywords
from hfaccel.native import NativeBias, NativeRelative, NativeRotary
from hfaccel.upstream.of_transformers import collected

# Keyword arguments that transformers passes to every layer, and that have no effect if attention is
# scaled_dot_product_attention without a cache.
HARMLESS_ARGUMENTS = frozenset({"position_ids", "use_cache", "return_dict", "output_hidden_states"})

Mask = torch.Tensor | None
Sample = tuple[list[Mask], Keywords]  # masks, and a forward's other arguments
MASK, CAUSAL = "attention_mask", "is_causal"  # names of arguments
HIDDEN = torch.finfo(torch.float32).min  # added to a score, it hides a token


@lru_cache(maxsize=16)
def hides_later(length: int) -> torch.Tensor:
    """(1, length, length), for all heads: a bias that hides later tokens from each token."""
    with torch.inference_mode(False):
        return torch.full((length, length), HIDDEN).triu(1)[None]


def _native_bias(bias: torch.Tensor) -> NativeBias:
    batched = bias if bias.dim() == 4 else bias[None]
    alike = zip(batched.shape, batched.stride(), strict=True)
    batch, head, query, _ = (0 if size == 1 else stride for size, stride in alike)
    return kernels().Bias(bias.data_ptr(), head, query, batch)


def _native_rotary(cosines: torch.Tensor, sines: torch.Tensor) -> NativeRotary:
    angles = cosines.shape[0] * cosines.shape[1]
    return kernels().Rotary(cosines.data_ptr(), sines.data_ptr(), angles, cosines.shape[2])


class Call:
    """A call of a layer that takes hidden states, a mask and perhaps rotary positions, and returns hidden
    states. Layers with other arguments or results have subclasses, which their families name
    (`hfaccel.engine.layers.families`)."""

    __slots__ = ("bias", "causal", "cosines", "layer", "relative", "sequences", "sines")
    implementation: ClassVar[str] = "sdpa"  # of attention, by the name in the config
    configured: ClassVar[bool] = True  # attention uses transformers' interface: its config chooses it
    harmless: ClassVar[frozenset[str]] = HARMLESS_ARGUMENTS
    unpads: ClassVar[bool] = True  # the layer can leave out padding
    positional: ClassVar[tuple[str, ...]] = ()  # names of the arguments after the mask
    masked: ClassVar[bool] = True  # the layer's forward takes a mask
    follows: ClassVar[bool] = False  # a decoder's: tokens see those before them, of earlier calls as well
    alike: ClassVar[bool] = True  # later layers are given the same arguments and read them the same way

    def __init__(self, layer: NativeLayer) -> None:
        self.layer = layer
        self.sequences: Sequences
        # Float32: (heads or 1, length, length); where tokens follow others, (batch or 1, heads, 1, keys)
        self.bias: torch.Tensor | None = None
        self.causal = False  # is_causal was passed
        self.cosines: torch.Tensor | None = None
        self.sines: torch.Tensor | None = None
        self.relative: NativeRelative | None = None

    def read(
        self,
        hidden: torch.Tensor,
        args: Arguments,
        kwargs: Keywords,
        unpad: bool,
    ) -> str:
        """Read the arguments of a layer's forward, mask first. Returns why the kernels cannot take them; ""
        if they can."""
        if hidden.dim() != 3 or hidden.shape[-1] != inputs_of(self.layer.linears[0]):
            return f"the hidden states have the shape {tuple(hidden.shape)}"
        mask = args[0] if args else kwargs.get(MASK)
        return self.take(hidden, args[1:], kwargs) or self.see(hidden, mask, unpad)

    def take(self, hidden: torch.Tensor, args: Arguments, kwargs: Keywords) -> str:
        """Read the arguments after the mask. Returns why the kernels cannot take them; "" if they can."""
        if self.positional and args:
            kwargs = {**kwargs, **dict(zip(self.positional, args, strict=False))}
            args = args[len(self.positional) :]
        if any(value is not None for value in args):
            return "cross-attention or a cache was passed"
        for name, value in kwargs.items():
            if value is None or value is False or name == MASK or name in self.harmless:
                continue
            problem = self.take_argument(hidden, name, value)
            if problem:
                return problem
        return self.complete(hidden)

    def take_argument(self, hidden: torch.Tensor, name: str, value: Any) -> str:
        """Read one argument that is not None. Returns why the kernels cannot take it; "" if they can."""
        if name == "position_embeddings" and self.layer.parts.rotary:
            return self.rotate(hidden, value)
        if name == CAUSAL and self.layer.parts.causal:
            self.causal = True
            return ""
        return f"{name} was passed"

    def complete(self, hidden: torch.Tensor) -> str:
        """Called when all arguments have been read. Returns which one is missing; "" for none."""
        missing = self.layer.parts.rotary and self.cosines is None
        return "no position_embeddings were passed" if missing else ""

    def rotate(self, hidden: torch.Tensor, embeddings: Iterable[torch.Tensor]) -> str:
        """Read the cosines and sines of positions. Returns why the kernels cannot take them."""
        batch, length, _ = hidden.shape
        cosines, sines = (part.float().contiguous() for part in embeddings)
        most, size = head_size(self.layer.attention) or 0, cosines.shape[-1]
        shapes = {(1, length, size), (batch, length, size)}
        if cosines.shape != sines.shape or cosines.shape not in shapes or size > most or size % 2:
            return f"the position embeddings have the shape {tuple(cosines.shape)}"
        self.cosines, self.sines = cosines, sines
        return ""

    def see(self, hidden: torch.Tensor, mask: Mask, unpad: bool) -> str:
        """Read the mask. Returns why the kernels cannot take it; "" if they can."""
        batch, length, _ = hidden.shape
        found = whole(batch, length) if mask is None else self.sequences_of(mask, hidden, unpad)
        if isinstance(found, str):
            return found
        self.sequences = found
        if found.causal or (self.causal and mask is None):  # a mask overrides is_causal
            self.bias = hides_later(length)
        return ""

    def sequences_of(
        self, mask: torch.Tensor, hidden: torch.Tensor, unpad: bool, pairs: bool = False
    ) -> Sequences | str:
        """The result of `read_mask`, which is called once for all layers of a model with this mask."""
        wanted = (*hidden.shape[:2], self.layer.window, unpad, pairs, self.causal)
        return self.layer.seen.masks.get(mask, wanted, lambda: read_mask(mask, *wanted))

    def give(self, result: torch.Tensor) -> object:
        """The return value of the layer's forward, from the new hidden states."""
        return result

    def __call__(self, hidden: torch.Tensor) -> object:
        return self.run(hidden, (self.layer,))

    def run(self, hidden: torch.Tensor, layers: Sequence[NativeLayer]) -> object:
        """Run `hidden` through these layers, one after another: (batch, sequence length, hidden size),
        float32 or bfloat16, without gradient."""
        rows = hidden.float().contiguous()
        output = torch.empty_like(rows)
        self.compute(layers, rows, output)
        return self.give(output if hidden.dtype is torch.float32 else output.to(hidden.dtype))

    def together_problem(self, layers: Sequence[NativeLayer]) -> str:
        """Why these layers cannot run in one call with these arguments; "" where they can."""
        return ""

    def compute(self, layers: Sequence[NativeLayer], rows: torch.Tensor, output: torch.Tensor) -> None:
        """Run `rows` through the layers into `output`, both contiguous float32."""
        self.call_kernels(layers, rows, output)

    def call_kernels(
        self, layers: Sequence[NativeLayer], rows: torch.Tensor, output: torch.Tensor, *past: Any
    ) -> None:
        kernels().run_layers(
            tuple(layer.native for layer in layers),
            torch.get_num_threads(),
            rows.data_ptr(),
            output.data_ptr(),
            self.sequences.native,
            None if self.bias is None else _native_bias(self.bias),
            self.rotary(),
            self.relative,
            *past,
        )

    def own_rotary(self) -> NativeRotary | None:
        if self.cosines is None or self.sines is None:
            return None
        return _native_rotary(self.cosines, self.sines)

    def rotary(self) -> NativeRotary | tuple[NativeRotary | None, ...] | None:
        """Of all layers, or of each."""
        return self.own_rotary()

    # For the trial of a layer

    @staticmethod
    def sample(layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator) -> Sample:
        """Masks, the last of which hides the tokens that `padding` (batch, length) marks, and other
        arguments. Among the masks, None stands for a call without one."""
        length = padding.shape[1]
        hides = (~padding)[:, None, None, :].expand(-1, -1, length, -1)
        arguments: Keywords = {}
        if parts.rotary:
            half = rotary_size(layer.get_submodule(parts.attention)) // 2
            halves = (torch.randn(1, length, half, generator=generator) for _ in range(2))
            arguments["position_embeddings"] = tuple(
                each.repeat_interleave(2, -1) if parts.pairs else each.repeat(1, 1, 2) for each in halves
            )
        return [None, hides], arguments

    @classmethod
    def variants(cls, layer: nn.Module, parts: Parts, masks: list[Mask]) -> Iterator[tuple[Mask, Keywords]]:
        """Each mask, and what else says whom a token sees."""
        for mask in masks:
            yield mask, {}
            if parts.causal:
                yield None if mask is None else mask.tril(), {CAUSAL: True}

    @classmethod
    def arguments_of(cls, layer: nn.Module, parts: Parts, batch: int, keywords: Keywords) -> Keywords:
        """The keyword arguments of one call for those of the sample."""
        return keywords

    @classmethod
    def result(cls, result: object, keywords: Keywords) -> object:
        """All that a call gave."""
        return result

    @staticmethod
    def unread(padding: torch.Tensor) -> torch.Tensor:
        """The positions (batch, length) that nobody reads where the mask hides `padding`."""
        return padding


def attentions_problem() -> str:
    """Why a layer with eager attention, which can return its weights, must run its own forward."""
    names = collected()
    wanted = names is None or any(name.endswith("attentions") for name in names)
    return "attentions are collected" if wanted else ""


def added(padding: torch.Tensor) -> torch.Tensor:
    """The mask (batch, 1, 1, length) that hides the padding when it is added to scores."""
    return torch.where(padding, HIDDEN, 0.0)[:, None, None, :]


def random_bias(
    layer: nn.Module, parts: Parts, padding: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """A random bias for scores: (1, heads, length, length)."""
    width = outputs_of(parts.linears(layer)[0])
    heads = width // (head_size(layer.get_submodule(parts.attention)) or 1)
    return torch.randn(1, heads, padding.shape[1], padding.shape[1], generator=generator)
