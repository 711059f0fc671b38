"""What a family is, and the list of known families."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from operator import attrgetter

from torch import nn

from hfaccel.engine.kernels import ACTIVATIONS, WIDEST_PANEL
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.mixtures import mixture_problem
from hfaccel.engine.layers.parts import (
    Parts,
    head_size,
    inputs_of,
    norms_are_wide,
    outputs_of,
    scale,
    split_gate_up,
)
from hfaccel.engine.norms import norm_kind
from hfaccel.engine.weights.linear import is_linear

GROUP = "hfaccel.families"  # of entry points


@dataclass(frozen=True, kw_only=True)
class Family(Parts):
    """One naming scheme of a layer's parts and one way to call the layer."""

    name: str
    call: type[Call] = Call
    marks: tuple[str, ...] = ()  # attributes of the attention that tell families with equal parts apart

    def __post_init__(self) -> None:
        if not all(self.attention_inputs) or not (self.experts or self.wide_inputs):
            raise ValueError(
                "a family must name query, key and value or qkv, and up or gate_up or experts, but "
                f"{self.name} names "
                f"{', '.join(filter(None, self.projections))}"
            )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the name only: where a model is loaded, the family may be a newer one."""
        return family_of, (self.name,)


FAMILIES: list[Family] = []


def register(family: Family) -> None:
    """Add a family, or replace the one of that name. Families are tried in the order of registration."""
    names = [known.name for known in FAMILIES]
    if family.name in names:
        FAMILIES[names.index(family.name)] = family
    else:
        FAMILIES.append(family)


@cache
def load_others() -> None:
    """Register the families of other packages, once."""
    for entry in entry_points(group=GROUP):
        try:
            register(entry.load())
        except Exception as error:  # noqa: BLE001 (one broken package must not keep models from being optimized)
            warnings.warn(
                f"an entry point of {GROUP} must load as a Family, but {entry.name} ({entry.value}) raised "
                f"{error!r}: layers of that family stay as they are. Update or uninstall its package",
                RuntimeWarning,
                stacklevel=2,
            )


def family_of(name: str) -> Family:
    """The family of this name. Raises ValueError for a name that no family has."""
    load_others()
    for family in FAMILIES:
        if family.name == name:
            return family
    names = ", ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"a family must be one of {names}, but got {name!r}: install or import the package that registers it"
    )


def candidates(layer: nn.Module) -> Iterator[Family]:
    """The families whose parts this module has."""
    load_others()
    for family in FAMILIES:
        if any(family.missing(layer)):
            continue
        attention = attrgetter(family.attention)(layer)
        if all(hasattr(attention, mark) for mark in family.marks):
            yield family


def fusing_problem(family: Family, layer: nn.Module) -> str:
    """Why these parts cannot be computed as one layer; "" if they can. The linear layers must be known to be
    packable."""
    attention = attrgetter(family.attention)(layer)
    return (
        _parts_problem(family, layer)
        or _direction_problem(family, layer, attention)
        or _interface_problem(family, attention)
        or _heads_problem(family, layer, attention)
        or _joint_problem(family, layer)
        or _cross_problem(family, layer, attention)
    )


def _parts_problem(family: Family, layer: nn.Module) -> str:
    linears = family.linears(layer)
    if not all(map(is_linear, linears)):
        return "a projection is not an nn.Linear"
    known = {*map(id, linears), *(id(attrgetter(path)(layer)) for path in (family.shared_gate,) if path)}
    others = {id(part) for part in layer.modules() if is_linear(part)} - known
    if family.call.follows and others:
        return "it has other linear layers than those of the family"
    if any(norm_kind(norm) is None for norm in family.norms(layer)):
        return "its norms are not nn.LayerNorm"
    if family.experts and (problem := mixture_problem(family, layer)):
        return problem
    if not family.wide_inputs:
        return ""
    activation = type(attrgetter(family.activation)(layer)).__name__
    return "" if activation in ACTIVATIONS else f"the activation {activation} cannot be fused"


def _interface_problem(family: Family, attention: nn.Module) -> str:
    if family.call.configured and not hasattr(attention, "config"):
        return (
            "its attention does not use transformers' attention interface, as the call of the family "
            f"{family.name} says (Call.configured)"
        )
    owners = attention, getattr(attention, "config", None)  # a trial's numbers are too small to be clipped
    clips = any(getattr(owner, "clip_qkv", None) is not None for owner in owners)
    return "its queries and keys are clipped" if clips else ""


def _heads_problem(family: Family, layer: nn.Module, attention: nn.Module) -> str:
    width = inputs_of(attrgetter(family.attention_output)(layer))
    size = head_size(attention)
    if size is None or size % 2 or width % size:
        return f"heads of {size} numbers do not make up a row of {width}"
    if not _head_norms_fit(family, layer, size):
        return "its norms of queries or keys have weights of another shape than a head"
    return ""


def _joint_problem(family: Family, layer: nn.Module) -> str:
    joint = split_gate_up(family, layer) if family.gate_up else []
    if any(rows.start % WIDEST_PANEL for _, rows in joint):
        return f"the width of a part of a joint projection is not a multiple of {WIDEST_PANEL}"
    return ""


def _head_norms_fit(family: Family, layer: nn.Module, size: int) -> bool:
    """Whether the norms of queries and keys have one weight for every number that they are over."""
    for path, linear in ((family.query_norm, family.query), (family.key_norm, family.key)):
        weight = getattr(attrgetter(path)(layer), "weight", None) if path else None
        width = outputs_of(attrgetter(linear)(layer)) if norms_are_wide(family, layer) else size
        if weight is not None and tuple(weight.shape) != (width,):
            return False
    return True


def _direction_problem(family: Family, layer: nn.Module, attention: nn.Module) -> str:
    """Why the layer's tokens do not see those that the family says."""
    if getattr(attention, "is_causal", family.call.follows) is not family.call.follows:
        return "its attention is not causal" if family.call.follows else "it is a decoder's layer"
    decodes = any(getattr(each, "is_decoder", False) for each in (layer, attention))
    return "it is a decoder's layer" if decodes and not family.call.follows else ""


def _cross_problem(family: Family, layer: nn.Module, attention: nn.Module) -> str:
    if not family.cross_attention:
        return ""
    cross = attrgetter(family.cross_attention)(layer)
    alike = head_size(cross) == head_size(attention) and scale(cross) == scale(attention)
    return "" if alike else "its two attentions have heads of different sizes or scales"
