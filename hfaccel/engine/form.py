"""What transform() made of a model, said in names: so that it can be done again without looking or trying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from hfaccel.engine.convolution import KINDS, PreparedConvolution, convolution_problem, prepare
from hfaccel.engine.counting import watch
from hfaccel.engine.embeddings import FusedEmbeddings
from hfaccel.engine.families import FAMILIES, Family
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layer import FusedLayer, fuse, run_stock
from hfaccel.engine.linear import PackedModule, packed_class
from hfaccel.engine.outside import OutsideModel
from hfaccel.engine.packed import PackedWeight
from hfaccel.engine.padding import UNPADS, PaddedModel
from hfaccel.engine.region import Follower, Region, derive
from hfaccel.engine.shortcut import ShortModel
from hfaccel.engine.stack import FusedStack
from hfaccel.engine.swapped import swap


@dataclass(frozen=True)
class Form:
    layers: dict[str, str]  # path of a fused layer -> name of its family
    stacks: dict[str, str]  # path of a module that runs its layers at once -> name of their list
    linears: Sequence[str]  # paths of packed linear layers
    unpad: bool | str  # whether padding is left out; "auto": where the calls of models tell that it may be
    # path of a prepared convolution -> its kind, and the paths of what it does besides
    convolutions: Mapping[str, tuple[str, Sequence[str]]] = field(default_factory=dict)
    regions: Sequence[str] = ()
    embeddings: Sequence[str] = ()  # paths of modules that look up, add and norm in one pass
    models: Sequence[str] = ()  # paths of those that have a shortcut; "" is the whole
    # path of a fused layer -> regimes in which its own forward runs
    slower: Mapping[str, Sequence[str]] = field(default_factory=dict)
    padded: Sequence[str] = ()  # paths of other models that tell their layers when padding counts
    computing: Sequence[str] = ()  # paths of fused layers that compute padding although others leave it out
    outside: Sequence[str] = ()  # paths of models that torch.compile leaves as they are


def form(model: nn.Module) -> Form:
    """Which of the model's modules are fused or packed."""
    layers = {path: module for path, module in model.named_modules() if isinstance(module, FusedLayer)}
    stacks = {path: module for path, module in model.named_modules() if isinstance(module, FusedStack)}
    unpads = {path: layer.__dict__[UNPADS] for path, layer in layers.items()}
    unpad = next(filter(None, unpads.values()), False) if unpads else "auto"
    return Form(
        {path: layer.hfaccel_family.name for path, layer in layers.items()},
        {path: module.hfaccel_list for path, module in stacks.items()},
        _paths(model, PackedModule),
        unpad,
        _convolutions(model),
        _paths(model, Region),
        _paths(model, FusedEmbeddings),
        _paths(model, ShortModel),
        {path: layer.slower for path, layer in layers.items() if layer.slower},
        tuple(
            path
            for path, module in model.named_modules()
            if isinstance(module, PaddedModel) and not isinstance(module, ShortModel)
        ),
        tuple(path for path, leaves_out in unpads.items() if unpad and not leaves_out),
        _paths(model, OutsideModel),
    )


def _paths(model: nn.Module, cls: type[nn.Module]) -> tuple[str, ...]:
    return tuple(path for path, module in model.named_modules() if isinstance(module, cls))


def form_problem(model: nn.Module) -> str:
    """Why `reform` could not make this model again; "" where it can."""
    inside = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        if isinstance(module, PreparedConvolution) and not inside.issuperset(map(id, module.followers)):
            return f"a part whose work {path} does was taken away"
        if isinstance(module, FusedLayer) and not _is_packed(module.hfaccel_family, module):
            return f"the weights of {path} are not packed now"
    return ""


def _is_packed(family: Family, layer: nn.Module) -> bool:
    return all(type(linear.weight) is PackedWeight for linear in family.linears(layer))


def _convolutions(model: nn.Module) -> dict[str, tuple[str, Sequence[str]]]:
    paths = {id(module): path for path, module in model.named_modules()}
    return {
        path: (module.wanted.label, tuple(paths[id(each)] for each in module.followers))
        for path, module in model.named_modules()
        if isinstance(module, PreparedConvolution)
    }


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
        if not _is_packed(families[name], layer):
            raise ValueError(f"the weights of {path} must be packed, but are not")
        fuse(layer, families[name], wanted.unpad if path not in wanted.computing else False)
        run_stock(layer, tuple(wanted.slower.get(path, ())))  # type: ignore[arg-type]
    _swap_classes(model, wanted)
    _reform_convolutions(model, wanted)
    watch(model)


def _swap_classes(model: nn.Module, wanted: Form) -> None:
    for path, name in wanted.stacks.items():
        swap(model.get_submodule(path), FusedStack, name)
    for path in wanted.embeddings:
        swap(model.get_submodule(path), FusedEmbeddings)
    for path in wanted.models:
        swap(model.get_submodule(path), ShortModel, wanted.unpad == "auto")
    for path in wanted.padded:
        swap(model.get_submodule(path), PaddedModel, True)
    for path in wanted.outside:
        swap(model.get_submodule(path), OutsideModel)


def _reform_convolutions(model: nn.Module, wanted: Form) -> None:
    for path, (kind, followers) in wanted.convolutions.items():
        _prepare(model, path, Kind[kind.upper()], followers)
    for path in wanted.regions:
        derive(model.get_submodule(path), Region)


def _prepare(model: nn.Module, path: str, kind: Kind, followers: Sequence[str]) -> None:
    convolution = model.get_submodule(path)
    problem = "" if isinstance(convolution, KINDS) else f"is a {type(convolution).__name__}"
    problem = problem or convolution_problem(convolution)  # type: ignore[arg-type]
    if problem:
        raise ValueError(f"{path} must be a convolution that can be prepared, but {problem}")
    modules = tuple(model.get_submodule(each) for each in followers)
    for module in modules:
        derive(module, Follower)
    prepare(convolution, kind, modules)  # type: ignore[arg-type]
