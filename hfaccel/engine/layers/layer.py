"""Encoder layers run as one function of the kernels, without padding, instead of a tree of modules.

The module tree stays: a fused layer has the same children and parameters, and is an instance of its
former class. When anything about a call or about the tree is out of the ordinary, the stock forward
runs and the reason is counted.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hfaccel.engine.calls.fallback import AUTOCAST, COUNTED, GRADIENTS, SLOWER, TRAINS, fall_back
from hfaccel.engine.calls.guards import is_hooked, outside_graphs, stock_reason
from hfaccel.engine.calls.regimes import only_kernels, regime_of
from hfaccel.engine.calls.settings import setting_problem, settings_of
from hfaccel.engine.calls.unpadding import UNPADS, is_computed
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.families import Family, family_of
from hfaccel.engine.layers.mixtures import has_packed_mixture
from hfaccel.engine.layers.native_layer import CACHE, SETTINGS, NativeLayer
from hfaccel.engine.layers.seen import Seen, seen_by
from hfaccel.engine.replacements import Find, ModuleReplacement, Paths, Settings, register
from hfaccel.engine.weights.autocast import forget_laid_out, is_bfloat16, is_rounded
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.replacement import replace

# Attributes of a fused layer: its NativeLayer, and the one for calls under autocast where that is another.
NATIVE, ROUNDED = "_hfaccel_native", "_hfaccel_rounded"
SEEN = "_hfaccel_seen"  # attribute of a fused layer: what it shares with the other layers of its model
SLOWER_REGIMES = "_hfaccel_slower"  # attribute of a fused layer: regimes in which its own forward runs
# Attribute of a fused layer: the type of its own forward's result under autocast, as the first such call saw.
AUTOCAST_GIVES = "_hfaccel_autocast_gives"


def _is_rounded(weight: object) -> bool:
    return isinstance(weight, PackedWeight) and is_rounded(weight)


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
    slower = module.__dict__.get(SLOWER_REGIMES, ())
    if not slower or only_kernels():
        return ""
    name = regime_of(hidden.numel() // hidden.shape[-1]).name
    return f"{SLOWER} with {name} rows" if name in slower else ""


@register
class FusedLayer(ModuleReplacement):
    """An encoder layer that the kernels compute as one; its key is its family."""

    hfaccel_name = "layer"
    hfaccel_prefix = "Fused"
    hfaccel_own = (COUNTED, NATIVE, ROUNDED)  # these are addresses, which are found again when needed

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        family = family_of(settings["family"])
        if not is_packed(family, module):
            raise ValueError("the weights of a fused layer must be packed, but are not")
        fuse(module, family, settings["unpad"], seen_by(find("")), settings.get("kv_cache", ""))
        run_stock(module, tuple(settings["slower"]))

    def hfaccel_settings(self, paths: Paths) -> Settings:
        family, slower = self.hfaccel_family.name, [*self.slower]
        kept = {"kv_cache": self.__dict__[CACHE]} if CACHE in self.__dict__ else {}
        return {"family": family, "unpad": self.__dict__[UNPADS], "slower": slower, **kept}

    def hfaccel_problem(self, paths: Paths) -> str:
        return "" if is_packed(self.hfaccel_family, self) else "its weights are not packed now"

    def hfaccel_forget_places(self) -> None:
        for name in (NATIVE, ROUNDED):
            self.__dict__.pop(name, None)

    @property
    def hfaccel_family(self) -> Family:
        family: Family = self.hfaccel_key
        return family

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        if self.training and torch.compiler.is_dynamo_compiling():
            return super().forward(hidden_states, *args, **kwargs)
        return self._hfaccel_run(hidden_states, *args, **kwargs)

    @outside_graphs
    def _hfaccel_run(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
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
        if hidden.dtype is not torch.float32 or not is_bfloat16() or self.hfaccel_family.experts:
            return False
        return self.__dict__.get(AUTOCAST_GIVES) is torch.float32 and all(
            isinstance(weight, PackedWeight) and not (is_rounded(weight) and weight.memory.is_inference())
            for weight in self._weights()
        )

    def _weights(self) -> Iterator[nn.Parameter | None]:
        return (linear._parameters.get("weight") for linear in self.hfaccel_family.linears(self))

    def _learn(self, dtype: torch.dtype) -> None:
        """What the layer's own forward gives under autocast."""
        self.__dict__[AUTOCAST_GIVES] = dtype
        for weight in self._weights() if dtype is torch.float32 else ():
            if isinstance(weight, PackedWeight):
                forget_laid_out(weight)

    def _prepare(
        self, hidden: torch.Tensor, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Call | str:
        """The call of the kernels, or why the stock forward must run."""
        problem = call_problem(self, hidden)
        if problem:
            return problem
        native = self.checked_native(torch.is_autocast_enabled("cpu"))
        if isinstance(native, str):
            return native
        if not native.code.holds():
            return native.code.problem()
        call = self.hfaccel_family.call(native)
        return call.read(hidden, args, kwargs, self.unpads) or call

    def train(self, mode: bool = True) -> FusedLayer:
        if mode:
            self.hfaccel_forget_places()  # a NativeLayer keeps the packed weights
        super().train(mode)
        return self

    def checked_native(self, casts: bool = False) -> NativeLayer | str:
        """What the kernels need, as the layer is now; or why they cannot run it. Whether its code is
        still the one that agreed is asked apart: all layers of a kind have the same. `casts`: under
        autocast."""
        rounds = casts and any(map(_is_rounded, self._weights()))
        name = ROUNDED if rounds else NATIVE
        native: NativeLayer | None = self.__dict__.get(name)
        if native is not None and native.is_as_before(self):
            return native
        if native is None or native.is_stale():
            problem = setting_problem(self, self.__dict__.get(SETTINGS, ()))
            if problem:  # it would be made of the wrong numbers
                return problem
            native = self.__dict__[name] = self._made_native(rounds)
        return native.problem(self) or native

    def _made_native(self, rounds: bool) -> NativeLayer:
        family, seen = self.hfaccel_family, self.__dict__[SEEN]
        return NativeLayer(self, family, family.call.implementation, seen, rounds)

    def unwatched_native(self) -> NativeLayer | str:
        """As `checked_native`; also why nothing of this layer's calls is the kernels' alone."""
        if "forward" in vars(self) or is_hooked(self):
            return "a layer has a hook, or a forward that is not its class'"
        return self.checked_native(torch.is_autocast_enabled("cpu"))

    @property
    def unpads(self) -> bool:
        """Whether padding is left out, in this call where there is one."""
        return bool(self.__dict__.get(UNPADS, True)) and not is_computed()

    @property
    def slower(self) -> tuple[str, ...]:
        """The regimes in which the layer's own forward runs."""
        regimes: tuple[str, ...] = self.__dict__.get(SLOWER_REGIMES, ())
        return regimes


def fuse(
    layer: nn.Module,
    family: Family,
    unpad: bool | str = "auto",
    seen: Seen | None = None,
    kv_cache: str = "",
) -> None:
    """Run the layer as one function. Its linear layers must be packed. `unpad`: whether padding is left out;
    "auto": except in calls that have to compute it. `seen`: shared with the other layers of its model.
    `kv_cache`: "int8" keeps a decoder's keys and values in 8 bits."""
    if not isinstance(layer, FusedLayer):
        replace(layer, FusedLayer, family)
    layer.__dict__[UNPADS] = unpads(family, unpad)
    if kv_cache:
        layer.__dict__[CACHE] = kv_cache
    layer.__dict__[SETTINGS] = tuple(settings_of(layer))
    layer.__dict__[SEEN] = seen or Seen()


def unpads(family: Family, unpad: bool | str) -> bool | str:
    """Whether layers of this family leave padding out where `unpad` was asked for. A decoder's do if they are
    told to: programs compute losses from rows of padding."""
    return unpad if family.call.unpads or (family.call.follows and unpad is True) else False


def run_stock(layer: nn.Module, regimes: tuple[str, ...]) -> None:
    """From now on its own forward computes calls of these regimes (engine.regimes, by name)."""
    layer.__dict__[SLOWER_REGIMES] = regimes


def is_packed(family: Family, layer: nn.Module) -> bool:
    """Whether all of the layer's weights are."""
    linears = all(isinstance(linear.weight, PackedWeight) for linear in family.linears(layer))
    return linears and has_packed_mixture(family, layer)
