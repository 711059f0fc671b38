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
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.distances import BiasRow, Buckets
from hfaccel.engine.layers.mixtures import mixture_memories, mixture_vectors
from hfaccel.engine.layers.native_parts import NativeParts
from hfaccel.engine.layers.parts import (
    Parts,
    head_size,
    window,
)
from hfaccel.engine.layers.seen import Seen
from hfaccel.engine.norms import EPSILONS, epsilon, norm_kind
from hfaccel.engine.weights.packed import PackedWeight
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
        self.of_encoder = [attrgetter(path)(layer) for path in parts.of_encoder]
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
        self.native: object | None = None
        self.attention_kind = Kind.FLOAT32
        self.refusal = UNPACKED
        if all(memory is not None for memory in self.memories):
            try:
                self._take(NativeParts(layer, parts, rounds))
            except ValueError as error:
                self.refusal = f"its parts do not fit each other ({error})"

    def _take(self, made: NativeParts) -> None:
        """Keep all but the layer, which keeps this."""
        self.native, self.attention_kind = made.native, made.attention_kind
        self.query_heads, self.cached_heads = made.query_heads, made.cached_heads
        # Layers that run together are alike in what their caches have.
        self.of_cache = self.cached_heads, head_size(self.attention), self.cache_type
        self.of_native = made.kept, made.kept_weights  # where it reads

    @property
    def cache_type(self) -> torch.dtype:
        """In which numbers keys and values are kept."""
        return torch.int8 if self.keeps_bytes else self.attention_type

    @property
    def attention_type(self) -> torch.dtype:
        return torch.bfloat16 if self.attention_kind is Kind.BFLOAT16 else torch.float32

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


def _links(module: nn.Module) -> Iterator[tuple[Table, str, nn.Module]]:
    """Every submodule with the table and the name under which its parent knows it."""
    for name, child in module._modules.items():
        if child is not None:
            yield module._modules, name, child
            yield from _links(child)
