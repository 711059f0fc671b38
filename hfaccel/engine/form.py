"""What transform() made of a model, said in names: so that it can be done again without looking or trying."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hfaccel.engine.families import FAMILIES
from hfaccel.engine.layer import FusedLayer, fuse
from hfaccel.engine.linear import PackedModule, packed_class
from hfaccel.engine.packed import PackedWeight
from hfaccel.engine.stack import FusedStack, stack


@dataclass(frozen=True)
class Form:
    layers: dict[str, str]  # path of a fused layer -> name of its family
    stacks: dict[str, str]  # path of a module that runs its layers at once -> name of their list
    linears: Sequence[str]  # paths of packed linear layers
    unpad: bool


def form(model: nn.Module) -> Form:
    """Which of the model's modules are fused or packed."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, FusedLayer)}
    stacks = {path: module for path, module in model.named_modules() if isinstance(module, FusedStack)}
    linears = (path for path, module in model.named_modules() if isinstance(module, PackedModule))
    return Form(
        {path: layer.hfaccel_family.name for path, layer in layers.items()},
        {path: module.hfaccel_list for path, module in stacks.items()},
        tuple(linears),
        all(layer.unpads for layer in layers.values()),
    )


def reform(model: nn.Module, wanted: Form) -> None:
    """Fuse and pack the same modules of an equal model whose weights are packed already. There is no trial:
    that was passed when the model of this form was made, by the same versions.

    Raises ValueError for a form that is of another model.
    """
    families = {family.name: family for family in FAMILIES}
    for path in wanted.linears:
        linear = model.get_submodule(path)
        cls = packed_class(linear)
        if cls is None or isinstance(linear, PackedModule):
            raise ValueError(f"{path} must be an nn.Linear, but is a {type(linear).__name__}")
        linear.__class__ = cls
    for path, name in wanted.layers.items():
        if name not in families:
            raise ValueError(f"a family must be one of {', '.join(families)}, but {path} has {name!r}")
        layer = model.get_submodule(path)
        if not all(type(linear.weight) is PackedWeight for linear in families[name].linears(layer)):
            raise ValueError(f"the weights of {path} must be packed, but are not")
        fuse(layer, families[name], wanted.unpad)
    for path, name in wanted.stacks.items():
        stack(model.get_submodule(path), name)
