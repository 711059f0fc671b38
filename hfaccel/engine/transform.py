"""Fuses a model's layers and packs its weights, in place, and undoes this.

Each stage looks at the model as the earlier stages have left it, tries and measures, and returns steps of a
plan. A loaded model gets the same steps, and nothing is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from hfaccel.engine import kinds
from hfaccel.engine.calibration.importance import measure_importance
from hfaccel.engine.calibration.judging import judge_layers, judge_linears
from hfaccel.engine.calibration.quantization import Verdict, try_int8
from hfaccel.engine.calibration.smoothing import smooth_layers
from hfaccel.engine.convolutions.selection import find_convolutions
from hfaccel.engine.counting import watch
from hfaccel.engine.experts.experts import PackedExperts
from hfaccel.engine.experts.selection import SUBJECT, experts_bytes, find_experts, pack_experts
from hfaccel.engine.kernels import Kind
from hfaccel.engine.layers.layer import is_packed
from hfaccel.engine.layers.selection import find_embeddings, find_layers, find_stacks, layers_of
from hfaccel.engine.models.dependence import compute_where_read
from hfaccel.engine.models.outside import find_outside
from hfaccel.engine.models.padding import find_padding
from hfaccel.engine.models.shortcut import shorten
from hfaccel.engine.models.token import find_tokens
from hfaccel.engine.plan import PLAN, ModelPlan, Step, apply_steps, keep, plan_of, steps_now
from hfaccel.engine.weights.checkpoints import is_quantized
from hfaccel.engine.weights.checkpoints.conversion import Converted, convert
from hfaccel.engine.weights.linear import PackedModule, unpack_all
from hfaccel.engine.weights.selection import (
    arena_for,
    find_linears,
    find_tied_embeddings,
    is_dense,
    pack_weights,
)
from hfaccel.errors import ModelError
from hfaccel.memory import Arena, pack_
from hfaccel.outcome import Outcome
from hfaccel.replacement import Replacement, undo
from hfaccel.upstream.of_quantizers import forget_quantizer

WEIGHTS = ("linear", "experts")  # replacements whose parameters are packed
ASKED_FOR = "padding is left out of every call, as asked for by unpad=True"


@dataclass
class Draft:
    """The plan of a model while its steps are found and carried out."""

    model: nn.Module
    steps: list[Step] = field(default_factory=list)
    notes: list[Outcome] = field(default_factory=list)

    def add(self, steps: Sequence[Step], notes: Iterable[Outcome] = ()) -> None:
        """Carry out these steps, and note them."""
        apply_steps(self.model, steps)
        self.note(steps, notes)

    def note(self, steps: Iterable[Step], notes: Iterable[Outcome] = ()) -> None:
        """Note steps that are carried out already."""
        self.steps += steps
        self.notes += notes


def transform(
    model: nn.Module,
    *,
    kind: Kind | None = None,
    huge_pages: bool = True,
    unpad: bool | str = "auto",
    samples: Sequence[Mapping[str, torch.Tensor]] = (),
    kv_cache: str = "",
) -> tuple[Outcome, ...]:
    """Fuse layers and pack weights wherever that is faster, in place. Parameters keep their shapes, their
    values (up to the precision asked for) and, if no value is rounded, their identity.

    `kind`: the numbers that linear layers and convolutions multiply; None: those of the checkpoint. `unpad`:
    whether padding is left out; "auto": in the calls that allow it (engine.models.padding). `samples`:
    typical inputs, on which int8 is tried; in int4-weight-only, they tell which inputs of a weight count.
    `kv_cache`: "int8" keeps keys and values of decoders in 8 bits."""
    draft = Draft(model)
    if kind is Kind.INT8 and is_quantized(model):
        raise ModelError(
            'quantization="int8" rounds weights, but those of this model are rounded already; '
            'use "int8-weight-only" or "int4-weight-only", which leave them and round the others, or nothing'
        )
    quantized = convert(model, huge_pages)
    draft.notes += quantized.outcomes
    layers, left = find_layers(model, unpad, kv_cache)
    fused = [layer for layer, _ in layers_of(model, layers)]
    convolutions = find_convolutions(
        model, fused, lambda weight: kinds.kind_or_own(weight, kinds.of_convolutions(kind))
    )
    draft.notes += left
    arena = _pack(draft, layers, kind, huge_pages, samples, quantized)
    draft.add(find_tied_embeddings(model))
    layers, left = _of_one_kind(model, [step for step in layers if _is_packed(model, step)])
    draft.notes += left
    _fuse(draft, layers, unpad)
    draft.add(*convolutions)
    draft.add(*find_embeddings(model))
    draft.add(*find_stacks(model))
    if kv_cache:
        draft.notes.append(_kv_cache(model, draft.steps))
    watch(model)  # before shortcuts, which are valid only while no module gets or loses an attribute
    steps, left = shorten(model)
    shortened = {step.path for step in steps}  # a shortcut stands in the place of the step for padding
    superseded = (step for step in draft.steps if step.replacement == "padding" and step.path in shortened)
    draft.notes += [step.outcome() for step in superseded]
    draft.note(steps, left)
    steps, left = find_tokens(model)
    draft.note(steps, left)
    draft.add(find_outside(model))
    draft.notes.append(_pages(arena))
    if huge_pages:
        draft.notes.append(_rest_of(model))
    plan = ModelPlan(tuple(steps_now(model, draft.steps)), tuple(draft.notes))  # with those of earlier calls
    keep(model, plan)
    return plan.outcomes()


def inspect(model: nn.Module, **settings: Any) -> ModelPlan:
    """What `transform` would do to the model with these arguments. A copy of the model is transformed, for
    which there must be enough memory."""
    twin = copy.deepcopy(model)
    transform(twin, **settings)
    return plan_of(twin)


def apply_plan(model: nn.Module, plan: ModelPlan, *, huge_pages: bool = True) -> None:
    """Carry out a plan, in place, without trying anything. Packed weights stay as they are.

    Raises ValueError for the plan of another model.
    """
    weights, experts = ([step for step in plan.steps if step.replacement == name] for name in WEIGHTS)
    arena = arena_for(model, weights, False, huge_pages, experts_bytes(model, experts, False))
    pack_weights(model, weights, arena, own=False)
    pack_experts(model, experts, arena, own=False)
    apply_steps(model, plan.steps)
    watch(model)
    keep(model, plan)


def restore(model: nn.Module) -> None:
    """Undo transform, in place: classes and memory layout as before, values untouched. If a weight cannot be
    unpacked, raises HfaccelError and undoes nothing."""
    unpack_all([module for module in model.modules() if isinstance(module, PackedModule | PackedExperts)])
    for module in list(model.modules()):
        if isinstance(module, Replacement):
            undo(module)
    model.__dict__.pop(PLAN, None)


def _pack(
    draft: Draft,
    layers: Sequence[Step],
    wanted: Kind | None,
    huge_pages: bool,
    samples: Sequence[Mapping[str, torch.Tensor]],
    quantized: Converted,
) -> Arena:
    """Pack the linear layers that are faster packed, and all linear layers of layers that are to be fused.
    Those that are `quantized` stay as their checkpoint has rounded them."""
    model, found = draft.model, layers_of(draft.model, layers)
    decodes = not found or any(family.call.follows for _, family in found)
    first = [each for layer, family in found for each in family.linears(layer)]
    linears, left = find_linears(model, first, tied=decodes)
    verdict = Verdict()
    if wanted is Kind.INT8:
        dense = [linear for linear in linears if is_dense(linear, Kind.INT8, True)]
        verdict = try_int8(model, found, dense, smooth_layers(model, found), samples)
    rounded_by_use = wanted is Kind.INT4_WEIGHT_ONLY and bool(samples)
    importance = measure_importance(model, linears, samples) if rounded_by_use else None
    experts, others = find_experts(model)
    grids = kinds.find(model, linears, experts, found, wanted, quantized)
    steps = kinds.steps_of_linears(linears, wanted, verdict, quantized.weights, grids)
    steps, slower = judge_linears(model, steps, [layer for layer, _ in found])
    of_experts = kinds.steps_of_experts(model, experts, wanted, grids)
    # The given model keeps its own weights where values change, or where its quantizer has a say in them.
    rounds = wanted not in (None, Kind.FLOAT32) or not quantized.shares
    if quantized.expanded and grids.numbers:
        forget_quantizer(model)
    arena = arena_for(model, steps, rounds, huge_pages, experts_bytes(model, of_experts, rounds))
    problems = pack_weights(model, steps, arena, own=rounds, tried=verdict.packed, importance=importance)
    unpacked = pack_experts(model, of_experts, arena, own=rounds)
    draft.notes += [*left, *slower, *others]
    draft.notes += [Outcome("linear layer", False, f"not packed: {why}") for why in problems.values()]
    draft.notes += [Outcome(SUBJECT, False, f"not packed: {why}") for why in unpacked.values()]
    draft.note(step for step in [*steps, *of_experts] if step.path not in {**problems, **unpacked})
    return arena


def _fuse(draft: Draft, steps: list[Step], unpad: bool | str) -> None:
    """Fuse the layers that are faster fused, and let the models around them tell when padding matters."""
    model = draft.model
    apply_steps(model, steps)
    if unpad == "auto":
        steps = compute_where_read(model, steps)
    steps, slower = judge_layers(model, steps)
    draft.note(steps, slower)
    if unpad == "auto":
        found = layers_of(model, steps)
        draft.add(find_padding(model, [layer for layer, family in found if not family.call.follows]))
    elif unpad and steps:
        draft.notes.append(Outcome(type(model).__name__, True, ASKED_FOR))


def _kv_cache(model: nn.Module, steps: list[Step]) -> Outcome:
    count = sum("kv_cache" in step.settings for step in steps)
    reason = f"keys and values of {count} layers are kept in 8 bits" if count else "no decoder layer is fused"
    return Outcome(f"{type(model).__name__}'s cache", bool(count), reason)


def _is_packed(model: nn.Module, step: Step) -> bool:
    ((layer, family),) = layers_of(model, [step])
    return is_packed(family, layer)


def _of_one_kind(model: nn.Module, steps: list[Step]) -> tuple[list[Step], list[Outcome]]:
    """A checkpoint may have quantized parts with equal inputs in different kinds. Those layers are left
    alone."""
    kept, left = [], []
    for step, (layer, family) in zip(steps, layers_of(model, steps), strict=True):
        sets = kinds.weights_with_equal_inputs(layer, family)
        if all(len({weight.kind for weight in some}) == 1 for some in sets):  # type: ignore[attr-defined]
            kept.append(step)
        else:
            left.append(
                Outcome(type(layer).__name__, False, "not fused: parts with equal inputs differ in kind")
            )
    return kept, left


def _rest_of(model: nn.Module) -> Outcome:
    """Embeddings, norms and biases: everything that is not packed."""
    packed = pack_(model)
    moved, stayed = packed.moved / 2**20, packed.in_place / 2**20
    size = f"other tensors: {moved:.1f} MiB moved next to each other, {stayed:.1f} MiB made huge in place"
    return Outcome("huge pages", not packed.problem, packed.problem or size)


def _pages(arena: Arena) -> Outcome:
    if arena.used == 0:
        return Outcome("huge pages", False, arena.problem or "no weight was moved")
    size = f"{arena.used / 2**20:.1f} MiB of weights in memory advised for huge pages"
    return Outcome("huge pages", not arena.problem, arena.problem or size)
