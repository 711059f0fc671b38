"""All layers of a model in one call of the kernels, instead of one call of Python for each.

Between two layers of a base-sized model Python finds its own working set evicted by the weights that were
read: some 150 microseconds per layer, a fifth of a short text's time. So the module that loops over fused
layers runs its own forward on a shadow of itself, whose list of layers has one element that runs them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from hfaccel.engine.calls.code import trust, trusted
from hfaccel.engine.calls.guards import GLOBAL_HOOKS, has_hooks, is_hooked, outside_graphs
from hfaccel.engine.calls.snapshot import Table
from hfaccel.engine.calls.trials import ROUNDED, TOLERANCE, difference, unwatched
from hfaccel.engine.layers.checked import Checked
from hfaccel.engine.layers.course import Course
from hfaccel.engine.layers.layer import FusedLayer, call_problem
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.layers.parts import layer_index, window
from hfaccel.engine.layers.stack_trial import rows_of, trial_of
from hfaccel.engine.layers.trial import sample
from hfaccel.engine.replacements import (
    Arguments,
    Find,
    Keywords,
    ModuleReplacement,
    Paths,
    Settings,
    register,
)
from hfaccel.replacement import replace, shadow

# What a forward that collects these in its own loop would collect from one layer only.
COLLECTED = ("output_hidden_states", "output_attentions")
CHECKED = "_hfaccel_checked"  # attribute of a decoder: its layers as they last ran, by the first of a run


@register
class FusedStack(ModuleReplacement):
    """A module that loops over fused layers: it runs them at once."""

    hfaccel_name = "stack"
    hfaccel_prefix = "Fused"

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        replace(module, cls, settings["layers"])

    def hfaccel_settings(self, paths: Paths) -> Settings:
        return {"layers": self.hfaccel_list}

    @property
    def hfaccel_list(self) -> str:
        """The name of their list."""
        return str(self.hfaccel_key)

    def forward(self, *args: object, **kwargs: object) -> object:
        if self.training and torch.compiler.is_dynamo_compiling():
            return super().forward(*args, **kwargs)
        return self._hfaccel_run(*args, **kwargs)

    @outside_graphs
    def _hfaccel_run(self, *args: object, **kwargs: object) -> object:
        if self.training or torch.compiler.is_compiling() or any(GLOBAL_HOOKS):
            return super().forward(*args, **kwargs)  # in training mode the loop may leave out layers
        if _collects(self, args, kwargs) or not trusted([self]).holds():
            return super().forward(*args, **kwargs)
        return self.hfaccel_original.forward(together(self, self.hfaccel_list), *args, **kwargs)


@register
class FusedDecoder(FusedStack):
    """A decoder is a model itself: its class keeps its name, which is written into checkpoints."""

    hfaccel_name = "decoder"
    hfaccel_prefix = ""
    hfaccel_signatures = ("forward",)
    hfaccel_own = (CHECKED,)

    def hfaccel_forget_places(self) -> None:
        self.__dict__.pop(CHECKED, None)

    def train(self, mode: bool = True) -> FusedDecoder:
        self.hfaccel_forget_places()  # a NativeLayer keeps the packed weights
        super().train(mode)
        return self


class Together:
    """Called as one layer, it is several that follow one another. `kept`: attributes of the decoder. (An
    encoder's shortcut would end if it got another attribute.) `apart`: they are given different masks."""

    def __init__(self, layers: Iterable[nn.Module], kept: Table | None = None, apart: bool = False) -> None:
        self.layers, self.kept, self.apart = list(layers), kept, apart

    def natives(self, hidden: torch.Tensor) -> Sequence[NativeLayer]:
        """As `natives_of`, which is asked again where something has changed."""
        if self.kept is None or torch.is_autocast_enabled("cpu"):
            return natives_of(self.layers, hidden, self.apart)
        found: dict[tuple[nn.Module, int], Checked] = self.kept.setdefault(CHECKED, {})
        key = self.layers[0], len(self.layers)
        checked = found.get(key)
        if checked is not None and checked.holds(self.layers):
            return () if call_problem(self.layers[0], hidden) else checked.natives
        natives = natives_of(self.layers, hidden, self.apart)
        if natives and not any(map(has_hooks, self.layers)):
            found[key] = Checked(self.layers, natives)
        return natives

    def __call__(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        natives = self.natives(hidden_states)
        if natives:
            first: Any = self.layers[0]
            call = first.hfaccel_family.call(natives[0])
            problem = call.read(hidden_states, args, kwargs, first.unpads)
            if not (problem or call.together_problem(natives)):
                return call.run(hidden_states, natives)
        result: Any = hidden_states
        for layer in self.layers:  # each finds its own reason
            hidden_states = result[0] if isinstance(result, tuple) else result
            result = layer(hidden_states, *args, **kwargs)
            args, kwargs = handed_on(layer, result, args, kwargs)
        return result


def handed_on(
    layer: nn.Module, result: object, args: Arguments, kwargs: Keywords
) -> tuple[Arguments, Keywords]:
    """The arguments of the next layer."""
    if not isinstance(layer, FusedLayer) or not layer.hfaccel_family.call.follows:
        return args, kwargs
    call: Any = layer.hfaccel_family.call
    given: tuple[Arguments, Keywords] = call.handed_on(result, args, kwargs)
    return given


def stand_ins(module: nn.Module, layers: nn.ModuleList) -> list[object]:
    """One Together for all layers. Where the model gives layers different masks or rotary positions, by
    their place in the list, there is one stand-in in each place."""
    runs = _runs_of(module, list(layers))
    kept = vars(module) if isinstance(module, FusedDecoder) else None
    if len(runs) == 1:
        return [Together(layers, kept)]
    kinds, whole = [kind for kind, _ in runs], Together(layers, kept, apart=True)
    return Course([Together(run, kept) for _, run in runs], whole, kinds).stand_ins()


Kind = tuple[int, object]  # what decides which mask and rotary positions a decoder's layer is given
Runs = list[tuple[Kind, list[nn.Module]]]
_runs: WeakKeyDictionary[nn.Module, tuple[list[nn.Module], Runs]] = WeakKeyDictionary()


def _runs_of(module: nn.Module, layers: list[nn.Module]) -> Runs:
    """The runs of layers that are given the same; found anew when the list has changed."""
    known = _runs.get(module)
    if known is None or known[0] != layers:
        known = _runs[module] = layers, [(kind, list(run)) for kind, run in groupby(layers, key=_kind)]
    return known[1]


def _kind(layer: nn.Module) -> Kind:
    if not isinstance(layer, FusedLayer) or not layer.hfaccel_family.call.follows:
        return -1, None
    attention: Any = layer.get_submodule(layer.hfaccel_family.attention)
    types = getattr(getattr(attention, "config", None), "layer_types", None)
    return window(attention), types[layer_index(attention)] if types else None


def natives_of(layers: Sequence[nn.Module], hidden: torch.Tensor, apart: bool = False) -> list[NativeLayer]:
    """What the kernels need of each layer; [] where the layers cannot run together. `apart`: those of a
    decoder, which are given different masks."""
    natives: list[NativeLayer] = []
    first = layers[0] if layers else None
    if not isinstance(first, FusedLayer) or call_problem(first, hidden):
        return []
    casts = torch.is_autocast_enabled("cpu")
    for layer in layers:
        if not isinstance(layer, FusedLayer) or not _run_alike(layer, first):
            return []
        if layer.training or "forward" in vars(layer) or is_hooked(layer):
            return []
        if casts and not layer.runs_under_autocast(hidden):
            return []
        native = layer.checked_native(casts)
        if isinstance(native, str) or (natives and not _alike(native, natives[0], apart)):
            return []
        natives.append(native)
    return natives if all(code.holds() for code in {each.code for each in natives}) else []


def _run_alike(one: FusedLayer, other: FusedLayer) -> bool:
    """Whether layers read what they are given the same way: a decoder's may have other parts, such as some
    mixtures."""
    family, wanted = one.hfaccel_family, other.hfaccel_family
    alike = family.call is wanted.call and family.rotary is wanted.rotary
    return family is wanted or (alike and wanted.call.follows)


def _alike(one: NativeLayer, other: NativeLayer, apart: bool) -> bool:
    return (apart or one.window == other.window) and one.of_cache == other.of_cache


def _collects(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> bool:
    """Whether the forward was asked to return something of each layer."""
    config = getattr(module, "config", None)
    return (
        any(value is True for value in args)
        or any(kwargs.get(name) for name in COLLECTED)
        or any(getattr(config, name, False) for name in COLLECTED)
    )


def together(module: nn.Module, name: str) -> nn.Module:
    """The module with the layers of its list `name` as one, or as few."""
    layers = module._modules[name]
    assert isinstance(layers, nn.ModuleList)
    return shadow(module, {name: stand_ins(module, layers)})


def lists_of_layers(model: nn.Module) -> list[tuple[str, nn.Module, str, str]]:
    """The modules that loop over fused layers: path, module, name of its list, and why its layers do not run
    at once ("" where that gives the same)."""
    found = []
    for path, module in model.named_modules():
        name = _list_of_layers(module)
        if name:
            found.append((path, module, name, _trial(module, name)))
    return found


def is_decoder(module: nn.Module, name: str) -> bool:
    """Whether the layers of this list are a decoder's."""
    layers: Any = module.get_submodule(name)
    return bool(layers[0].hfaccel_family.call.follows)


def _list_of_layers(module: nn.Module) -> str:
    """Under which name the module keeps its fused layers; "" where it has no or several such lists. Encoders
    that are models themselves are left out: `engine.models` knows those."""
    if isinstance(module, ModuleReplacement):
        return ""
    names = [
        name
        for name, child in module.named_children()
        if isinstance(child, nn.ModuleList)
        and len(child) > 1
        and all(isinstance(layer, FusedLayer) and layer.hfaccel_family.call.alike for layer in child)
    ]
    if len(names) != 1 or (hasattr(module, "save_pretrained") and not is_decoder(module, names[0])):
        return ""
    return names[0]


def _trial(module: nn.Module, name: str) -> str:
    """Run the module's forward both ways on random input; "" where they agree."""
    layers: Any = module.get_submodule(name)
    dtype = rows_of(module)
    hidden, (mask, *_), _ = sample(layers[0], layers[0].hfaccel_family, dtype=dtype)
    run = trial_of(module, layers[0])
    with torch.inference_mode(), unwatched(layers):
        try:
            expected, got = (run(each, hidden, mask) for each in (module, together(module, name)))
        except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
            return f"{type(error).__name__}: {error}"
    problem = difference(expected, got, TOLERANCE if dtype is torch.float32 else ROUNDED)
    if not problem:
        trust([module])
    return problem
