"""What the kernels need of one layer, and whether that still is the layer's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.code import trusted
from hfaccel.engine.calls.fallback import UNPACKED
from hfaccel.engine.calls.guards import GLOBAL_HOOKS, has_foreign
from hfaccel.engine.calls.settings import Setting, setting_problem
from hfaccel.engine.calls.snapshot import Held, Place, Snapshot, Table, place
from hfaccel.engine.kernels import ACTIVATIONS, Activation, Kind, kernels, multiplies
from hfaccel.engine.layers.distances import BiasRow, Buckets
from hfaccel.engine.layers.mixtures import mixture_memories, mixture_vectors, native_mixture
from hfaccel.engine.layers.parts import (
    Parts,
    added_factor,
    copies,
    head_size,
    is_rotated,
    key_heads,
    layout,
    norms_are_wide,
    query_heads,
    scale,
    softcap,
    split_gate_up,
    window,
)
from hfaccel.engine.layers.seen import Seen
from hfaccel.engine.norms import EPSILONS, epsilon, native_norm, norm_kind
from hfaccel.engine.weights.autocast import rounded
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.native import NativeMatrix, NativeNorm
from hfaccel.upstream.of_transformers import CHOICE

CACHE = "_hfaccel_kv_cache"  # attribute of a fused layer: "int8" where keys and values are kept so
SETTINGS = "_hfaccel_settings"  # attribute of a fused layer: those of its parts when it was fused


class NativeLayer:
    """What the kernels need of one layer, looked up once, and whether that still is the layer's.

    `implementation`: of attention, by its name in a config. `rounds`: for calls under autocast, with weights
    that are rounded for those."""

    def __init__(
        self, layer: nn.Module, parts: Parts, implementation: str, seen: Seen, rounds: bool = False
    ) -> None:
        self.parts, self.seen = parts, seen
        self.attention = attrgetter(parts.attention)(layer)
        self.config = getattr(self.attention, "config", None)
        self.implementation = implementation
        self.window = window(self.attention)
        self.keeps_bytes = vars(layer).get(CACHE) == "int8"
        self.links = list(_links(layer))
        self.modules = [child for _, _, child in self.links]
        self.code = trusted((layer, *self.modules))
        self.settings: tuple[Setting, ...] = vars(layer).get(SETTINGS, ())
        self.own = [name for path, name, _ in self.settings if not path and name != "__class__"]
        # Of the layer itself, of which the snapshot must not hold the attributes.
        self.own_values: list[object] = []
        self.hooks = [
            hooks for _, _, child in self.links for hooks in (child._forward_hooks, child._forward_pre_hooks)
        ]
        self.linears = parts.linears(layer)
        of_encoder = (parts.cross_key, parts.cross_value)  # what multiplies an encoder's states
        self.of_encoder = [attrgetter(path)(layer) for path in of_encoder if path]
        # A part may have been wrapped since (by peft, for one): then it has no packed weight.
        weights = [linear._parameters.get("weight") for linear in self.linears]
        self.memories = [getattr(weight, "memory", None) for weight in weights]
        self.copied = [
            memory for memory in self.memories if rounds and memory is not None and not memory.is_inference()
        ]
        self.copied += _raised(parts.norms(layer))
        self.versions = [memory._version for memory in self.copied]
        self.rounds = rounds
        vectors = (*parts.vectors(layer), *mixture_vectors(parts, layer))
        self.vectors = [(table, name, table.get(name)) for table, name in vectors]
        self.of_experts = list(mixture_memories(parts, layer))
        self.places = [place(vector) for _, _, vector in self.vectors]
        self.epsilons = [(norm, epsilon(norm)) for norm in parts.norms(layer)]
        self.snapshot: Snapshot | None = None  # of the last time that nothing kept the kernels from running
        self.buckets: Buckets | None = None  # of the last call, where distances have scores
        self.bias_row: BiasRow | None = None  # the same, where a decoder's distances have biases
        self.kept: dict[int, torch.Tensor] = {}
        self.kept_weights: dict[int, PackedWeight] = {}  # by the id of what it was rounded from
        self.attention_kind = Kind.FLOAT32
        self.native: object | None = None
        self.refusal = UNPACKED
        if all(memory is not None for memory in self.memories):
            try:
                self.native = self._native(layer, parts)
            except ValueError as error:  # a part was replaced by a packed one of another kind or size
                self.refusal = f"its parts do not fit each other ({error})"

    def _native(self, layer: nn.Module, parts: Parts) -> object:
        self.attention_kind = attention_kind(self._packed(self.linears[0]).kind)
        self.query_heads = query_heads(parts, layer)
        self.cached_heads = key_heads(parts, layer) * copies(parts, layer)

        def norm(path: str) -> NativeNorm | None:
            return native_norm(attrgetter(path)(layer), self._float32) if path else None

        more = (parts.query_norm, parts.key_norm, parts.attention_end, parts.output_end)
        return kernels().Layer(
            (*self._attention_inputs(layer), self._part(layer, parts.attention_output)),
            self._feed_forward(layer),
            (norm(parts.attention_norm), norm(parts.output_norm)),
            head_size(self.attention) or 1,
            parts.norm_first,
            self._activation(layer),
            self.attention_kind,
            1.0 if parts.unscaled else scale(self.attention),
            tuple(map(norm, more)),
            parts.parallel,
            norms_are_wide(parts, layer),
            parts.pairs,
            parts.unrotated or not is_rotated(self.attention),
            softcap(self.attention),
            added_factor(layer),
            layout(parts, layer),
            parts.norms_rotated,
            self._cross(layer),
            *((native_mixture(parts, layer),) if parts.experts else ()),
        )

    def _cross(self, layer: nn.Module) -> tuple[NativeMatrix | None, NativeMatrix | None, NativeNorm | None]:
        """What attention over an encoder's states needs besides their keys and values."""
        parts = self.parts
        if not parts.cross_attention:
            return None, None, None
        norm = native_norm(attrgetter(parts.cross_norm)(layer), self._float32)
        return self._part(layer, parts.cross_query), self._part(layer, parts.cross_output), norm

    @property
    def cache_type(self) -> torch.dtype:
        """In which numbers keys and values are kept."""
        return torch.int8 if self.keeps_bytes else self.attention_type

    @property
    def attention_type(self) -> torch.dtype:
        return torch.bfloat16 if self.attention_kind is Kind.BFLOAT16 else torch.float32

    def _packed(self, linear: nn.Linear) -> PackedWeight:
        weight = linear.weight
        assert isinstance(weight, PackedWeight)
        return self.kept_weights.setdefault(id(weight), rounded(weight)) if self.rounds else weight

    def _matrix(self, linear: nn.Linear, rows: slice | None = None) -> NativeMatrix:
        return self._packed(linear).matrix(self._float32(linear.bias), rows)

    def _part(self, layer: nn.Module, path: str) -> NativeMatrix:
        return self._matrix(attrgetter(path)(layer))

    def _attention_inputs(
        self, layer: nn.Module
    ) -> tuple[NativeMatrix, NativeMatrix | None, NativeMatrix | None]:
        """Of query, key and value; of query alone where that multiplies for all three."""
        parts = self.parts
        if parts.qkv:
            return self._part(layer, parts.qkv), None, None
        return self._part(layer, parts.query), self._part(layer, parts.key), self._part(layer, parts.value)

    def _feed_forward(
        self, layer: nn.Module
    ) -> tuple[NativeMatrix | None, NativeMatrix | None, NativeMatrix | None]:
        """Of gate, up and down; none of a mixture."""
        if self.parts.experts:
            return None, None, None
        return (*self._wide_inputs(layer), self._part(layer, self.parts.down))

    def _wide_inputs(self, layer: nn.Module) -> tuple[NativeMatrix | None, NativeMatrix]:
        """Of gate and up."""
        parts = self.parts
        if parts.gate_up:
            gate, up = (self._matrix(*piece) for piece in split_gate_up(parts, layer))
            return gate, up
        return self._part(layer, parts.gate) if parts.gate else None, self._part(layer, parts.up)

    def _activation(self, layer: nn.Module) -> Activation:
        if self.parts.experts:
            return Activation.NONE
        activation = ACTIVATIONS[type(attrgetter(self.parts.activation)(layer)).__name__]
        is_rough = activation is Activation.GELU and self._packed(self.linears[-1]).kind is Kind.INT8
        return Activation.GELU_ROUGH if is_rough else activation

    def _float32(self, vector: torch.Tensor | None, plus: float = 0.0) -> torch.Tensor | None:
        """The vector itself, or a copy in float32, plus a number: `problem` notices when it changes."""
        if vector is None:
            return None
        own = vector.detach().float()
        return self.kept.setdefault(id(vector), own + plus if plus else own)

    def is_as_before(self, layer: nn.Module) -> bool:
        """Whether all is as it was when `problem` last found none: quickly, for nearly every call asks it."""
        return (
            self.snapshot is not None and self._own_values(layer) == self.own_values and self.snapshot.holds()
        )

    def _own_values(self, layer: nn.Module) -> list[object]:
        attributes = vars(layer)
        return [len(attributes), *map(attributes.get, self.own), *(each._version for each in self.copied)]

    def is_stale(self) -> bool:
        """Whether a weight, bias or norm was replaced or has moved, or one of which there is a copy has
        changed."""
        for (table, name, vector), before in zip(self.vectors, self.places, strict=True):
            if table.get(name) is not vector or (vector is not None and _has_changed(vector, before)):
                return True
        for linear, memory in zip(self.linears, self.memories, strict=True):
            if getattr(linear._parameters.get("weight"), "memory", None) is not memory:
                return True  # share_memory() moves it, .to() and training pack it anew
        if any(table.get(name) is not value for table, name, value in self.of_experts):
            return True
        if [memory._version for memory in self.copied] != self.versions:
            return True
        return any(epsilon(norm) != before for norm, before in self.epsilons)

    def problem(self, layer: nn.Module) -> str:
        """Why the stock forward must run; "" for none."""
        problem = self._problem() or setting_problem(layer, self.settings)
        if not problem:
            vectors = (vector for _, _, vector in self.vectors if vector is not None)
            hooks = (*self.hooks, *GLOBAL_HOOKS)
            self.snapshot = Snapshot(self.held(layer), hooks, vectors, self.modules)
            self.own_values = self._own_values(layer)
        return problem

    def held(self, layer: nn.Module) -> Iterator[Held]:
        """Where `is_stale` and `problem` look."""
        yield from self.links
        yield from self.vectors
        yield from self.of_experts
        for child in self.modules:
            yield vars(child), "training", False
            if "forward" in vars(child):
                yield vars(child), "forward", vars(child)["forward"]
        of_parts = {path: vars(part) for path, part in layer.named_modules() if path}
        for path, name, _ in self.settings:
            if path and name != "__class__":
                yield of_parts[path], name, of_parts[path].get(name)
        for linear in self.linears:
            weight: Any = linear.weight
            yield linear._parameters, "weight", weight
            yield vars(weight), "memory", weight.memory
        for norm, _ in self.epsilons:
            yield from ((vars(norm), name, vars(norm).get(name)) for name in EPSILONS)
        chosen = {} if self.config is None else vars(self.config)
        yield from ((chosen, name, value) for name, value in chosen.items() if name.startswith(CHOICE))

    def _problem(self) -> str:
        if self.native is None:
            return self.refusal
        if self.config is not None and getattr(self.config, CHOICE) != self.implementation:
            return f"the attention implementation is {getattr(self.config, CHOICE)}"
        for linear, memory in zip(self.linears, self.memories, strict=True):
            weight = linear._parameters.get("weight")  # pruning and parametrizations take it away
            if not isinstance(weight, PackedWeight) or weight.memory is not memory:
                return "a weight was replaced, moved or cast"
        return self._problem_of_parts()

    def _problem_of_parts(self) -> str:
        for table, name, child in self.links:
            if table.get(name) is not child:
                return f"the submodule {name} was replaced"
            if "forward" in child.__dict__ and _is_replaced(child):  # as accelerate's hooks have it
                return f"the forward of the submodule {name} was replaced"
            if child.training:  # Monte Carlo dropout trains nothing but the dropouts
                return f"the submodule {name} is in training mode"
        for hooks in self.hooks:
            if has_foreign(hooks):
                return "a submodule has a hook"
        if any(GLOBAL_HOOKS):
            return "a hook is registered for all modules"
        return ""


def _raised(norms: Iterable[nn.Module]) -> list[torch.Tensor]:
    """Weights of norms to which a number is added: the kernels read a copy."""
    kinds = ((norm_kind(norm), norm._parameters.get("weight")) for norm in norms)
    return [
        weight
        for kind, weight in kinds
        if kind is not None and kind.plus and weight is not None and not weight.is_inference()
    ]


def _is_replaced(module: nn.Module) -> bool:
    """Whether the module's forward is not its class' own; accelerate puts that back as an attribute."""
    return getattr(module.forward, "__func__", None) is not type(module).forward


def _has_changed(vector: torch.Tensor, before: Place) -> bool:
    return vector.data_ptr() != before[0] or (before[1] >= 0 and vector._version != before[1])


def attention_kind(kind: Kind) -> Kind:
    """In which numbers attention multiplies where the linear layers multiply in `kind`."""
    if kind is Kind.FLOAT32 or not multiplies(Kind.BFLOAT16):
        return Kind.FLOAT32
    return Kind.BFLOAT16


def _links(module: nn.Module) -> Iterator[tuple[Table, str, nn.Module]]:
    """Every submodule with the table and the name under which its parent knows it."""
    for name, child in module._modules.items():
        if child is not None:
            yield module._modules, name, child
            yield from _links(child)
