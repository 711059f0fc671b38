"""The experts of a layer, computed in one call of the kernels: tokens are grouped by expert, and no expert is
read that no token has chosen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.code import Code, code_of
from hfaccel.engine.calls.fallback import COUNTED, TRAINS, UNPACKED, fall_back
from hfaccel.engine.calls.guards import COMPUTED, has_hooks, outside_graphs, stock_reason
from hfaccel.engine.experts.form import DOWN, FORMULAS, Form, Formula, form_of
from hfaccel.engine.kernels import Kind, kernels
from hfaccel.engine.replacements import Arguments, Find, Keywords, Paths, Settings, register
from hfaccel.engine.weights.holder import PackedHolder
from hfaccel.engine.weights.linear import fits
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.repacking import kind_of
from hfaccel.native import NativeExperts
from hfaccel.replacement import replace, shadow
from hfaccel.upstream.of_experts import chosen_function, is_elsewhere

NATIVE = "_hfaccel_native"  # attribute: the native object, by the places of what it was made of
FORMULA = "_hfaccel_formula"  # attribute: the formula that was tried


@register
class PackedExperts(PackedHolder):
    """A module of experts with packed weights. `hfaccel_key`: their form, and the name of their formula.

    Where the weights are not packed, or anything else is out of the ordinary, the module's own forward runs,
    on values that are unpacked for that call."""

    hfaccel_name = "experts"
    hfaccel_prefix = "Packed"
    hfaccel_own = (COUNTED, NATIVE)
    hfaccel_code: ClassVar[Code]  # of the module's own class
    hfaccel_key: ClassVar[tuple[Form, str]]

    def __init_subclass__(cls, **settings: object) -> None:
        super().__init_subclass__(**settings)
        if "hfaccel_original" in vars(cls):
            cls.hfaccel_code = code_of([cls.hfaccel_original])

    @classmethod
    def hfaccel_packed(cls) -> Mapping[str, type[PackedWeight]]:
        return cls.hfaccel_key[0].weights

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        name = settings["formula"]
        if name not in FORMULAS:
            raise ValueError(f"a formula must be one of {', '.join(FORMULAS)}, but got {name!r}")
        formula = FORMULAS[name](module)
        if formula is None:
            raise ValueError(f"a {type(module).__name__} has no numbers for the formula {name!r}")
        if not isinstance(module, PackedExperts):
            module.__dict__[FORMULA] = formula
            replace(module, cls, (form_of(module), name))

    def hfaccel_settings(self, paths: Paths) -> Settings:
        weight = self._parameters[DOWN]
        assert weight is not None
        kind: Kind = weight.kind if isinstance(weight, PackedWeight) else kind_of(weight.dtype)
        return {"kind": kind.label, "formula": self.hfaccel_key[1]}

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self.training and torch.compiler.is_dynamo_compiling() and not _are_packed(self):
            return self._stock(args, kwargs)  # what is trained is compiled as without hfaccel
        result: torch.Tensor = self._compute(*args, **kwargs)
        return result

    @outside_graphs
    def _compute(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = _given(self, args, kwargs)
        problem = stock_reason(given[0]) or _problem(self)
        if problem or not _fit(self, *given):
            if problem:
                fall_back(self, problem)
            return self._stock(args, kwargs)  # raises torch's own error, or computes as torch does
        if torch.is_grad_enabled():
            parameters = [self._parameters[name] for name in self.hfaccel_packed()]
            result = _Experts.apply(self, *given, *parameters, *_biases(self))
        else:
            result = run(self, *given)
        return self._stock(args, kwargs) if result is None else result

    def _stock(self, args: Arguments, kwargs: Keywords) -> torch.Tensor:
        """The module's own forward. Each of its operations would unpack the weights of all experts anew."""
        packed = {name: self._parameters[name] for name in self.hfaccel_packed()}
        dense = {name: each.clone() for name, each in packed.items() if isinstance(each, PackedWeight)}
        return self._stock_with(dense, args, kwargs)

    def _stock_with(
        self, weights: Mapping[str, torch.Tensor], args: Arguments, kwargs: Keywords
    ) -> torch.Tensor:
        """The module's own forward with these in the place of its parameters."""
        module = shadow(self, weights) if weights else self
        result: torch.Tensor = super(PackedExperts, module).forward(*args, **kwargs)
        return result


def run(
    module: PackedExperts, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor | None:
    """The kernels' result; None where an index is one of no expert."""
    rows, index, weights = hidden.contiguous(), index.contiguous(), weights.contiguous()
    output = torch.empty_like(rows)
    computed = kernels().experts(
        torch.get_num_threads(),
        native_experts(module),
        (rows.data_ptr(), output.data_ptr(), len(rows), rows.dtype is torch.bfloat16),
        (index.data_ptr(), weights.data_ptr(), index.shape[1], weights.dtype is torch.bfloat16),
    )
    return output if computed else None


def native_experts(module: PackedExperts) -> NativeExperts:
    up, down = (module._parameters[name] for name in module.hfaccel_packed())
    biases = _biases(module)
    memories: list[torch.Tensor] = [up.memory, down.memory, *biases]  # type: ignore[union-attr]
    places = tuple([each.data_ptr() for each in memories])
    known = module.__dict__.get(NATIVE)
    if known is None or known[0] != places:
        known = module.__dict__[NATIVE] = places, _made(module, up, down, biases)
    native: NativeExperts = known[1]
    return native


def _made(module: PackedExperts, up: Any, down: Any, biases: list[torch.Tensor]) -> NativeExperts:
    form, formula = module.hfaccel_key[0], module.__dict__[FORMULA]
    halves = [up.packing.first(up.memory, half) for half in range(up.packing.halves)]
    gate = halves[0] if form.gated else None
    added = [(each.data_ptr(), each.dtype is torch.bfloat16) for each in biases] or [(0, False), (0, False)]
    return kernels().Experts(
        up.packing.count,
        (gate, halves[-1], down.packing.first(down.memory, 0)),
        (up.packing.step, down.packing.step),
        formula.activation,
        (formula.limit, formula.slope, formula.shift),
        (added[0], added[1]),
        form.alternate,
    )


def _are_packed(module: PackedExperts) -> bool:
    return all(type(module._parameters[name]) is cls for name, cls in module.hfaccel_packed().items())


def _biases(module: PackedExperts) -> list[torch.Tensor]:
    return [getattr(module, name) for name in module.hfaccel_key[0].biases]


def _given(module: PackedExperts, args: Arguments, kwargs: Keywords) -> Arguments:
    """Hidden states, experts and their weights, which each model calls by other names."""
    if len(args) == 3 and not kwargs:
        return args
    return inspect.signature(super(PackedExperts, module).forward).bind(*args, **kwargs).args


def _problem(module: PackedExperts) -> str:
    """Why the module's own forward must run."""
    form, name = module.hfaccel_key
    formula: Formula = module.__dict__[FORMULA]
    if not _are_packed(module):
        return TRAINS if module.training else UNPACKED
    if any(map(has_hooks, module.children())):
        return "a submodule has a hook"
    if form_of(module) != form or FORMULAS[name](module) != formula or is_elsewhere(module):
        return "an attribute of the experts was changed"
    if not module.hfaccel_code.holds():
        return module.hfaccel_code.problem()
    if not is_known(module):
        return "the experts implementation is none that was known when they were packed"
    return ""


def is_known(module: nn.Module) -> bool:
    """Whether the function that would compute these experts is transformers' own."""
    function = chosen_function(module)
    return function is None or getattr(function, "__module__", "").startswith("transformers.")


def _fit(module: PackedExperts, hidden: object, index: object, weights: object, *more: object) -> bool:
    """Whether the kernels take these arguments and biases."""
    tensors = isinstance(hidden, torch.Tensor), type(index) is torch.Tensor, type(weights) is torch.Tensor
    if more or not all(tensors):
        return False
    assert isinstance(hidden, torch.Tensor) and isinstance(index, torch.Tensor)
    assert isinstance(weights, torch.Tensor)
    layout: Any = module._parameters[DOWN].packing  # type: ignore[union-attr]
    fitting = hidden.dim() == 2 and hidden.shape[1] == layout.rows and index.dtype is torch.int64
    chosen = index.dim() == 2 and index.shape == weights.shape and 0 < len(index) == len(hidden)
    plain = index.is_cpu and weights.is_cpu and weights.dtype in COMPUTED and index.shape[1] > 0
    biases = all(
        type(each) is nn.Parameter and fits(each) and each.is_contiguous() for each in _biases(module)
    )
    return fitting and chosen and plain and biases


class _Experts(torch.autograd.Function):
    """The kernels where a gradient may be wanted; backward computes the module's own forward once more, on
    unpacked weights."""

    @staticmethod
    def forward(ctx: Any, module: PackedExperts, *tensors: torch.Tensor) -> torch.Tensor | None:
        ctx.module = module
        ctx.save_for_backward(*tensors)
        return run(module, *tensors[:3])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        module, form = ctx.module, ctx.module.hfaccel_key[0]
        needed = ctx.needs_input_grad[1:]
        with torch.enable_grad():
            leaves = [
                (each.unpack() if isinstance(each, PackedWeight) else each.detach()).requires_grad_(wanted)
                for each, wanted in zip(ctx.saved_tensors, needed, strict=True)
            ]
            names = (*form.weights, *form.biases)
            result = module._stock_with(dict(zip(names, leaves[3:], strict=True)), leaves[:3], {})
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad([result], wanted, gradients, allow_unused=True))
        return (None, *(next(found) if leaf.requires_grad else None for leaf in leaves))
