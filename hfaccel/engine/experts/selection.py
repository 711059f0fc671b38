"""Which experts of a model are packed: those whose own forward the kernels' result agrees with."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.kinds import kind_of
from hfaccel.engine.experts.experts import PackedExperts, is_known, run
from hfaccel.engine.experts.form import DOWN, FORMULAS, experts_problem, form_of, is_experts
from hfaccel.engine.kernels import Kind
from hfaccel.engine.plan import Step, module_at
from hfaccel.engine.weights import selection as linears
from hfaccel.engine.weights.exchange import exchange
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.memory import Arena, padded
from hfaccel.outcome import Outcome

SUBJECT = "experts"
# Of the experts that stand for a module's: too few to cost time, and no multiples of anything.
COUNT, CHOSEN, TOKENS, WIDTH, INNER = 3, 2, 9, 40, 24
SPREAD = 3.0  # of what the activation is given, where nothing limits it


def find_experts(model: nn.Module) -> tuple[dict[str, str], list[Outcome]]:
    """Paths of experts that can be packed, and their formulas; and why those left are left."""
    known: dict[Hashable, tuple[str, str]] = {}
    found, left = {}, []
    for path, module in model.named_modules():
        if not is_experts(module):
            continue
        formula, problem = _recognised(module, known)
        if problem:
            left.append(Outcome(SUBJECT, False, f"not packed: {problem}"))
        else:
            found[path] = formula
    return found, left


def holders(model: nn.Module) -> list[nn.Module]:
    """The modules of the model whose parameters may be packed in place."""
    return [*linears.holders(model), *filter(is_experts, model.modules())]


def _recognised(module: Any, known: dict[Hashable, tuple[str, str]]) -> tuple[str, str]:
    """The name of the formula, and why there is none."""
    if isinstance(module, PackedExperts):
        return module.hfaccel_key[1], ""  # by an earlier call, for another tree of modules
    if problem := experts_problem(module):
        return "", problem
    if not is_known(module):
        return "", "their implementation is the program's own"
    kind = kind_of(module)
    if kind not in known:
        known[kind] = tried(module)
    return known[kind]


def tried(module: nn.Module) -> tuple[str, str]:
    """The name of the formula with which a small twin of these experts agrees with its own forward; and why
    there is none."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weights = torch.rand(TOKENS, COUNT, generator=generator)
    given = hidden, *reversed(weights.topk(CHOSEN))
    names = [name for name, formula in FORMULAS.items() if formula(module) is not None]
    with torch.no_grad(), torch.inference_mode(False):
        for name in names:
            twin = _twin(module, name)
            try:
                wanted = twin(*given)
            except Exception as error:  # noqa: BLE001 - whatever a forward raises, it is not the one we know
                return "", f"a small copy of them raises {type(error).__name__}"
            if _agrees(twin, name, given, wanted):
                return name, ""
    return "", f"{type(module).__name__} computes something else than is known"


def pack_copy(experts: nn.Module, formula: str) -> None:
    """Give these experts packed weights of their own."""
    for parameter, cls in form_of(experts).weights.items():
        experts._parameters[parameter] = cls.pack(experts._parameters[parameter])  # type: ignore[arg-type]
    PackedExperts.hfaccel_apply(experts, {"formula": formula}, experts.get_submodule)


def _agrees(twin: nn.Module, name: str, given: Any, wanted: torch.Tensor) -> bool:
    pack_copy(twin, name)
    assert isinstance(twin, PackedExperts)
    got = run(twin, *given)
    return got is not None and torch.allclose(got, wanted, rtol=1e-4, atol=1e-4 * wanted.abs().max().item())


def _twin(module: Any, name: str) -> nn.Module:
    """The same module with a few small experts, in float32."""
    form, generator = form_of(module), torch.Generator().manual_seed(1)
    formula = FORMULAS[name](module)
    assert formula is not None
    wide = 2 * INNER if form.gated else INNER
    shapes = {form.up: (COUNT, wide, WIDTH), DOWN: (COUNT, WIDTH, INNER)}
    sizes = {f"{form.up}_bias": (COUNT, wide), f"{DOWN}_bias": (COUNT, WIDTH)} if form.biased else {}
    spread = max(SPREAD, formula.limit) / WIDTH**0.5
    memo: dict[int, object] = {id(module.config): module.config}
    for parameter, shape in {**shapes, **sizes}.items():
        values = torch.randn(shape, generator=generator) * spread
        turned = values.transpose(1, 2).contiguous() if form.transposed and len(shape) == 3 else values
        memo[id(module._parameters[parameter])] = nn.Parameter(turned)
    twin: nn.Module = copy.deepcopy(module, memo)
    twin.num_experts = COUNT  # type: ignore[assignment]
    return twin


def experts_bytes(model: nn.Module, steps: Iterable[Step], rounds: bool) -> int:
    """Of an arena for all that is not packed yet. `rounds`: or is packed in another kind."""
    return sum(
        padded(cls.layout_of(Kind.of(step.settings["kind"]), module._parameters[name].shape).nbytes)
        for step in steps
        for module in [module_at(model, step.path)]
        for name, cls in form_of(module).weights.items()
        if _is_to_pack(module._parameters[name], step, rounds)
    )


def pack_experts(model: nn.Module, steps: Iterable[Step], arena: Arena, *, own: bool) -> dict[str, str]:
    """Pack these experts into `arena`; the paths of those that could not be, and why. `own`: not in the
    parameters' places, so that the model that was given keeps its values."""
    problems = {}
    for step in steps:
        module = module_at(model, step.path)
        try:
            for name, cls in form_of(module).weights.items():
                _pack(module, name, cls, step, arena, own)
        except RuntimeError as error:
            for weight in module._parameters.values():
                if isinstance(weight, PackedWeight):
                    weight.make_dense()
            problems[step.path] = f"their weights cannot be exchanged ({error})"
            continue
        PackedExperts.hfaccel_apply(module, step.settings, model.get_submodule)
    return problems


def _pack(module: nn.Module, name: str, cls: type[PackedWeight], step: Step, arena: Arena, own: bool) -> None:
    weight = module._parameters[name]
    if weight is None or not _is_to_pack(weight, step, own):
        return
    packed = cls.pack(weight, arena, Kind.of(step.settings["kind"]))
    if own:
        module._parameters[name] = packed
        return
    with torch.inference_mode(False):
        exchange(weight, packed)


def _is_to_pack(weight: Any, step: Step, rounds: bool) -> bool:
    return not isinstance(weight, PackedWeight) or (rounds and weight.kind.label != step.settings["kind"])
