"""Encoder layers run as one function of the kernels, without padding, instead of a tree of modules.

The module tree stays: a fused layer has the same children and parameters, and is an instance of its
former class. When anything about a call or about the tree is out of the ordinary, the stock forward
runs and the reason is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.code import trusted
from hfaccel.engine.calls.fallback import (
    AUTOCAST,
    COUNTED,
    GRADIENTS,
    SLOWER,
    TRAINS,
    UNPACKED,
    fall_back,
)
from hfaccel.engine.calls.guards import GLOBAL_HOOKS, has_foreign, is_hooked, outside_graphs, stock_reason
from hfaccel.engine.calls.regimes import regime_of
from hfaccel.engine.calls.settings import Setting, setting_problem, settings_of
from hfaccel.engine.calls.snapshot import Held, Place, Snapshot, place
from hfaccel.engine.calls.unpadding import UNPADS, is_computed
from hfaccel.engine.kernels import ACTIVATIONS, Activation, Kind, kernels, multiplies
from hfaccel.engine.layers.adapters import CALLS
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.distances import Buckets
from hfaccel.engine.layers.families import Family, family_of, head_size, scale, split, vectors, window
from hfaccel.engine.norms import EPSILONS, epsilon, native_norm
from hfaccel.engine.replacements import Find, ModuleReplacement, Paths, Settings, register
from hfaccel.engine.weights.autocast import forget_laid_out, is_bfloat16, is_rounded, rounded
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.native import NativeMatrix
from hfaccel.replacement import replace

# How a config of transformers names its attention; it keeps that under a name that begins so.
CHOICE = "_attn_implementation"

# Attributes of a fused layer: its Plan, and the one for calls under autocast where that is another.
PLAN, ROUNDED_PLAN = "_hfaccel_plan", "_hfaccel_rounded_plan"
# Attribute of a fused layer: the type of its own forward's result under autocast, as the first such call saw.
AUTOCAST_GIVES = "_hfaccel_autocast_gives"


class Plan:
    """What the kernels need of one layer, looked up once, and whether that still is the layer's.

    `rounds`: for calls under autocast, with weights that are rounded for those."""

    def __init__(self, layer: nn.Module, family: Family, rounds: bool = False) -> None:
        self.attention = attrgetter(family.attention)(layer)
        self.config = getattr(self.attention, "config", None)
        self.implementation = CALLS[family.adapter].implementation
        self.window = window(self.attention)
        self.links = list(_links(layer))
        self.parts = [child for _, _, child in self.links]
        self.code = trusted((layer, *self.parts))
        self.settings: tuple[Setting, ...] = vars(layer).get("_hfaccel_settings", ())
        self.own = [name for path, name, _ in self.settings if not path and name != "__class__"]
        self.own_values: list[
            Any
        ] = []  # of the layer itself, of which the snapshot must not hold the attributes
        self.hooks = [
            hooks for _, _, child in self.links for hooks in (child._forward_hooks, child._forward_pre_hooks)
        ]
        self.linears = family.linears(layer)
        # A part may have been wrapped since (by peft, for one): then it has no packed weight.
        weights = [linear._parameters.get("weight") for linear in self.linears]
        self.memories = [getattr(weight, "memory", None) for weight in weights]
        self.copied = [
            memory for memory in self.memories if rounds and memory is not None and not memory.is_inference()
        ]
        self.versions = [memory._version for memory in self.copied]
        self.rounds = rounds
        self.vectors = [(table, name, table.get(name)) for table, name in vectors(family, layer)]
        self.places = [place(vector) for _, _, vector in self.vectors]
        self.epsilons = [(norm, epsilon(norm)) for norm in family.norms(layer)]
        self.snapshot: Snapshot | None = None  # of the last time that nothing kept the kernels from running
        self.buckets: Buckets | None = None  # of the last call, where distances have scores
        self.kept: dict[int, torch.Tensor] = {}
        self.kept_weights: dict[int, PackedWeight] = {}  # by the id of what it was rounded from
        self.attention_kind = Kind.FLOAT32
        self.native: object | None = None
        self.refusal = UNPACKED
        if all(memory is not None for memory in self.memories):
            try:
                self.native = self._native(layer, family)
            except ValueError as error:  # a part was replaced by a packed one of another kind or size
                self.refusal = f"its parts do not fit each other ({error})"

    def _native(self, layer: nn.Module, family: Family) -> object:
        def packed(linear: nn.Linear) -> PackedWeight:
            weight = linear.weight
            assert isinstance(weight, PackedWeight)
            return self.kept_weights.setdefault(id(weight), rounded(weight)) if self.rounds else weight

        def matrix(linear: nn.Linear, rows: slice | None = None) -> NativeMatrix:
            return packed(linear).matrix(self._float32(linear.bias), rows)

        def part(path: str) -> NativeMatrix:
            return matrix(attrgetter(path)(layer))

        if family.qkv:
            query, key, value = (matrix(*piece) for piece in split(attrgetter(family.qkv)(layer), 3))
        else:
            query, key, value = part(family.query), part(family.key), part(family.value)
        gate: NativeMatrix | None
        if family.gate_up:
            gate, up = (matrix(*piece) for piece in split(attrgetter(family.gate_up)(layer), 2))
        else:
            gate, up = part(family.gate) if family.gate else None, part(family.up)
        self.attention_kind = attention_kind(packed(self.linears[0]).kind)
        activation = ACTIVATIONS[type(attrgetter(family.activation)(layer)).__name__]
        if packed(self.linears[-1]).kind is Kind.INT8 and activation is Activation.GELU:
            activation = Activation.GELU_ROUGH
        attention_norm, output_norm = (native_norm(norm, self._float32) for norm in family.norms(layer))
        return kernels().Layer(
            (query, key, value, part(family.attention_output)),
            (gate, up, part(family.down)),
            (attention_norm, output_norm),
            head_size(self.attention) or 1,
            family.norm_first,
            activation,
            self.attention_kind,
            scale(self.attention),
        )

    def _float32(self, vector: torch.Tensor | None) -> torch.Tensor | None:
        """The vector itself, or a copy in float32: `problem` notices when it changes."""
        if vector is None:
            return None
        return self.kept.setdefault(id(vector), vector.detach().float())

    def is_as_before(self, layer: nn.Module) -> bool:
        """Whether all is as it was when `problem` last found none: quickly, for nearly every call asks it."""
        return (
            self.snapshot is not None and self._own_values(layer) == self.own_values and self.snapshot.holds()
        )

    def _own_values(self, layer: nn.Module) -> list[Any]:
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
        if [memory._version for memory in self.copied] != self.versions:
            return True
        return any(epsilon(norm) != before for norm, before in self.epsilons)

    def problem(self, layer: nn.Module) -> str:
        """Why the stock forward must run; "" for none."""
        problem = self._problem() or setting_problem(layer, self.settings)
        if not problem:
            vectors = (vector for _, _, vector in self.vectors if vector is not None)
            hooks = (*self.hooks, *GLOBAL_HOOKS)
            self.snapshot = Snapshot(self._held(layer), hooks, vectors, self.parts)
            self.own_values = self._own_values(layer)
        return problem

    def _held(self, layer: nn.Module) -> Iterator[Held]:
        """Where `is_stale` and `problem` look."""
        yield from self.links
        yield from self.vectors
        for child in self.parts:
            yield vars(child), "training", False
            if "forward" in vars(child):
                yield vars(child), "forward", vars(child)["forward"]
        of_parts = {path: vars(part) for path, part in layer.named_modules() if path}
        for path, name, _ in self.settings:
            if path and name != "__class__":
                yield of_parts[path], name, of_parts[path].get(name)
        for linear in self.linears:
            weight = linear.weight
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
            if type(weight) is not PackedWeight or weight.memory is not memory:
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


def _is_replaced(module: nn.Module) -> bool:
    """Whether the module's forward is not its class' own; accelerate puts that back as an attribute."""
    return getattr(module.forward, "__func__", None) is not type(module).forward


def _is_rounded(weight: Any) -> bool:
    return isinstance(weight, PackedWeight) and is_rounded(weight)


def _has_changed(vector: torch.Tensor, before: Place) -> bool:
    return vector.data_ptr() != before[0] or (before[1] >= 0 and vector._version != before[1])


def attention_kind(kind: Kind) -> Kind:
    """In which numbers attention multiplies where the linear layers multiply in `kind`."""
    if kind is Kind.FLOAT32 or not multiplies(Kind.BFLOAT16):
        return Kind.FLOAT32
    return Kind.BFLOAT16


def _links(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, nn.Module]]:
    """Every submodule with the table and the name under which its parent knows it."""
    for name, child in module._modules.items():
        if child is not None:
            yield module._modules, name, child
            yield from _links(child)


def call_problem(module: nn.Module, hidden: torch.Tensor) -> str:
    """Why no kernel may compute this call of a fused module; "" where one may."""
    if module.training:
        return TRAINS
    if torch.is_grad_enabled():
        return GRADIENTS
    problem = stock_reason(hidden)
    if problem == AUTOCAST and isinstance(module, FusedLayer) and module.runs_under_autocast(hidden):
        return ""
    return problem or _slower_reason(module, hidden)


def _slower_reason(module: nn.Module, hidden: torch.Tensor) -> str:
    slower = module.__dict__.get("_hfaccel_slower", ())
    if not slower:
        return ""
    name = regime_of(hidden.numel() // hidden.shape[-1]).name
    return f"{SLOWER} with {name} rows" if name in slower else ""


@register
class FusedLayer(ModuleReplacement):
    """An encoder layer that the kernels compute as one; its key is its family."""

    hfaccel_name = "layer"
    hfaccel_prefix = "Fused"
    hfaccel_own = (COUNTED, PLAN, ROUNDED_PLAN)  # these are addresses, which are found again when needed

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        family = family_of(settings["family"])
        if not is_packed(family, module):
            raise ValueError("the weights of a fused layer must be packed, but are not")
        fuse(module, family, settings["unpad"])
        run_stock(module, tuple(settings["slower"]))

    def hfaccel_settings(self, paths: Paths) -> Settings:
        family, slower = self.hfaccel_family.name, [*self.slower]
        return {"family": family, "unpad": self.__dict__[UNPADS], "slower": slower}

    def hfaccel_problem(self, paths: Paths) -> str:
        return "" if is_packed(self.hfaccel_family, self) else "its weights are not packed now"

    def hfaccel_forget_places(self) -> None:
        for name in (PLAN, ROUNDED_PLAN):
            self.__dict__.pop(name, None)

    @property
    def hfaccel_family(self) -> Family:
        family: Family = self.hfaccel_key
        return family

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.training and torch.compiler.is_dynamo_compiling():
            return super().forward(hidden_states, *args, **kwargs)
        return self._hfaccel_run(hidden_states, *args, **kwargs)

    @outside_graphs
    def _hfaccel_run(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        run = self._prepare(hidden_states, args, kwargs)
        if not isinstance(run, str):
            return run(hidden_states)
        if run == AUTOCAST and AUTOCAST_GIVES not in self.__dict__:
            result = super().forward(hidden_states, *args, **kwargs)
            self._learn((result[0] if isinstance(result, tuple) else result).dtype)
            return result
        fall_back(self, run)
        return super().forward(hidden_states, *args, **kwargs)

    def runs_under_autocast(self, hidden: torch.Tensor) -> bool:
        """Whether the kernels may run there: stock gave float32, as where the residual stream is that."""
        if hidden.dtype is not torch.float32 or not is_bfloat16():
            return False
        return self.__dict__.get(AUTOCAST_GIVES) is torch.float32 and all(
            isinstance(weight, PackedWeight) and not (is_rounded(weight) and weight.memory.is_inference())
            for weight in self._weights()
        )

    def _weights(self) -> Iterator[Any]:
        return (linear._parameters.get("weight") for linear in self.hfaccel_family.linears(self))

    def _learn(self, dtype: torch.dtype) -> None:
        """What the layer's own forward gives under autocast."""
        self.__dict__[AUTOCAST_GIVES] = dtype
        for weight in self._weights() if dtype is torch.float32 else ():
            if isinstance(weight, PackedWeight):
                forget_laid_out(weight)

    def _prepare(self, hidden: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | str:
        """The call of the kernels, or why the stock forward must run."""
        problem = call_problem(self, hidden)
        if problem:
            return problem
        plan = self.checked_plan(torch.is_autocast_enabled("cpu"))
        if isinstance(plan, str):
            return plan
        if not plan.code.holds():
            return plan.code.problem()
        call = CALLS[self.hfaccel_family.adapter](plan, self.hfaccel_family)
        return call.read(hidden, args, kwargs, self.unpads) or call

    def train(self, mode: bool = True) -> FusedLayer:
        if mode:
            self.hfaccel_forget_places()  # a plan keeps the packed weights
        super().train(mode)
        return self

    def checked_plan(self, casts: bool = False) -> Plan | str:
        """What the kernels need, as the layer is now; or why they cannot run it. Whether its code is
        still the one that agreed is asked apart: all layers of a kind have the same. `casts`: under
        autocast."""
        rounds = casts and any(map(_is_rounded, self._weights()))
        name = ROUNDED_PLAN if rounds else PLAN
        plan: Plan | None = self.__dict__.get(name)
        if plan is not None and plan.is_as_before(self):
            return plan
        if plan is None or plan.is_stale():
            problem = setting_problem(self, self.__dict__.get("_hfaccel_settings", ()))
            if problem:  # a plan would be made of the wrong numbers
                return problem
            plan = self.__dict__[name] = Plan(self, self.hfaccel_family, rounds)
        return plan.problem(self) or plan

    def unwatched_plan(self) -> Plan | str:
        """As `checked_plan`; also why nothing of this layer's calls is the kernels' alone."""
        if "forward" in vars(self) or is_hooked(self):
            return "a layer has a hook, or a forward that is not its class'"
        return self.checked_plan(torch.is_autocast_enabled("cpu"))

    @property
    def unpads(self) -> bool:
        """Whether padding is left out, in this call where there is one."""
        return bool(self.__dict__.get(UNPADS, True)) and not is_computed()

    @property
    def slower(self) -> tuple[str, ...]:
        """The regimes in which the layer's own forward runs."""
        regimes: tuple[str, ...] = self.__dict__.get("_hfaccel_slower", ())
        return regimes


def fuse(layer: nn.Module, family: Family, unpad: bool | str = "auto") -> None:
    """Run the layer as one function. Its linear layers must be packed. `unpad`: whether padding is left out;
    "auto": except in calls that have to compute it."""
    if not isinstance(layer, FusedLayer):
        replace(layer, FusedLayer, family)
    layer.__dict__[UNPADS] = unpad if CALLS[family.adapter].unpads else False
    layer.__dict__["_hfaccel_settings"] = tuple(settings_of(layer))


def run_stock(layer: nn.Module, regimes: tuple[str, ...]) -> None:
    """From now on its own forward computes calls of these regimes (engine.regimes, by name)."""
    layer.__dict__["_hfaccel_slower"] = regimes


def is_packed(family: Family, layer: nn.Module) -> bool:
    """Whether all of the layer's weights are."""
    return all(type(linear.weight) is PackedWeight for linear in family.linears(layer))
