"""Which linear layers of a model are packed; and packing them side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from hfaccel.engine.kernels import Kind
from hfaccel.engine.plan import Step, module_at
from hfaccel.engine.weights.linear import is_linear, linear_problem, pack, weight_class
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.memory import Arena, padded
from hfaccel.outcome import Outcome


def find_linears(
    model: nn.Module, first: Sequence[nn.Linear], tied: bool = False
) -> tuple[dict[nn.Linear, str], list[Outcome]]:
    """Those to pack with their paths, in memory order: `first`, which were found packable, then the others;
    and why those left are left."""
    paths = {module: path for path, module in model.named_modules()}
    embeddings = {module.weight for module in paths if isinstance(module, nn.Embedding)}
    selected: dict[nn.Linear, str] = {module: paths[module] for module in first}
    left: list[Outcome] = []
    for module, path in paths.items():
        if not is_linear(module) or module in selected:
            continue
        problem = linear_problem(module)
        if not problem and not tied and module.weight in embeddings:
            problem = "its weight is tied to an embedding, whose rows the kernels look up as they lie"
        if problem:
            left.append(Outcome("linear layer", False, f"not packed: {problem}"))
        else:
            selected[module] = path
    return selected, left


def holders(model: nn.Module) -> list[nn.Module]:
    """The linear layers of the model, and the embeddings that are tied to one."""
    linears = [module for module in model.modules() if is_linear(module) and module is not model]
    found = (getattr(module, "weight", None) for module in linears)
    weights = {weight for weight in found if isinstance(weight, torch.Tensor)}
    tied = (each for each in model.modules() if isinstance(each, nn.Embedding) and each.weight in weights)
    return [*linears, *tied]


def find_tied_embeddings(model: nn.Module) -> list[Step]:
    """Embeddings whose weight was packed for a linear layer."""
    return [
        Step(path, "embedding", {}, type(module).__name__, "its rows are unpacked as they are looked up")
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and type(module.weight) is PackedWeight
    ]


def is_dense(module: nn.Linear, kind: Kind, rounds: bool) -> bool:
    """Whether the weight of a linear layer still has to be packed. `rounds`: where it is packed otherwise
    than in `kind` as well."""
    weight = module.weight
    return not isinstance(weight, PackedWeight) or (rounds and weight.kind is not kind)


def pack_weights(
    model: nn.Module,
    steps: Iterable[Step],
    arena: Arena,
    *,
    own: bool,
    tried: Mapping[torch.Tensor, PackedWeight] | None = None,
    importance: Mapping[torch.Tensor, torch.Tensor] | None = None,
) -> dict[str, str]:
    """Pack the weights of these linear layers into `arena`; the paths of those that could not be, and why.
    `own`: not in the parameter's place, so that the model that was given keeps its values. `tried`: what is
    packed already, in memory of its own. `importance`: by weight, how much each input counts in rounding."""
    packed: dict[torch.Tensor, PackedWeight] = {}
    problems = {}
    for step in steps:
        module: nn.Linear = module_at(model, step.path)
        kind = Kind.of(step.settings["kind"])
        weight = module.weight
        if own and is_dense(module, kind, True):
            if weight not in packed:
                counts = (importance or {}).get(weight)
                packed[weight] = _packed(module, arena, kind, (tried or {}).get(weight), counts)
            module.weight = packed[weight]
        if problem := pack(module, arena, kind):
            problems[step.path] = problem
    return problems


def _packed(
    module: nn.Linear,
    arena: Arena,
    kind: Kind,
    tried: PackedWeight | None,
    importance: torch.Tensor | None,
) -> PackedWeight:
    if tried is None:
        return weight_class(module).pack(module.weight, arena, kind, importance=importance)
    return tried.over(arena.take(tried.memory.shape, torch.uint8).copy_(tried.memory))


def arena_for(
    model: nn.Module, steps: Iterable[Step], rounds: bool, huge_pages: bool, more: int = 0
) -> Arena:
    """Room for all weights that are not packed yet, and for `more` bytes."""
    layouts = {}
    for step in steps:
        module = module_at(model, step.path)
        if not is_linear(module):
            raise ValueError(f"{step.path} must be a linear layer, but is a {type(module).__name__}")
        kind = Kind.of(step.settings["kind"])
        if is_dense(module, kind, rounds):
            layouts[module.weight] = weight_class(module).layout_of(kind, module.weight.shape)
    with torch.inference_mode(False):  # tensors of its memory shall have versions
        size = more + sum(padded(layout.nbytes) for layout in layouts.values())
        return Arena(size, pages="thp" if huge_pages else "default")
