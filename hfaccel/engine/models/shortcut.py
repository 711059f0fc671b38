"""A model that follows its recipe instead of its own forward, where a call without padding allows that.

With few tokens much of the time is the model's Python, which finds all that it needs evicted by the weights:
0.4 of 0.9 ms for MiniLM and 8 tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, TypeGuard

import torch
from torch import nn

from hfaccel.engine.calls.code import current
from hfaccel.engine.calls.guards import GLOBAL_HOOKS, is_watched
from hfaccel.engine.calls.ragged import whole
from hfaccel.engine.calls.settings import own_settings
from hfaccel.engine.calls.snapshot import Held, Snapshot
from hfaccel.engine.calls.trials import difference
from hfaccel.engine.kernels import kernels
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.embeddings import Sum, native_embedding, sum_problem
from hfaccel.engine.layers.stack import plans_of
from hfaccel.engine.models.outside import outside_of_graphs
from hfaccel.engine.models.padding import PaddedModel, watch_layers
from hfaccel.engine.models.recipe import (
    NoRecipe,
    Recipe,
    Source,
    is_candidate,
    named_ids,
    ordinary_ids,
    recipe_of,
)
from hfaccel.engine.norms import EPSILONS, NormKind, norm_kind
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import Arguments, Find, Keywords, Settings, register
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.outcome import Outcome
from hfaccel.replacement import replace, undo_outermost

NOT_SOUGHT = "it was not looked for yet"
TRAINS = "a part of it is in training mode"  # a trial would draw from the program's random numbers
_seeking = threading.Lock()
TENSORS = ("input_ids", "attention_mask", "token_type_ids")


@register
class ShortModel(PaddedModel):
    """A model that takes its shortcut where that can be taken."""

    hfaccel_name = "shortcut"
    hfaccel_own = (*PaddedModel.hfaccel_own, "_hfaccel_shortcut")

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        if isinstance(module, PaddedModel):
            undo_outermost(module)
        elif settings["unpads"]:
            watch_layers(module)
        replace(module, cls, bool(settings["unpads"]))

    def forward(
        self, *args: object, **kwargs: object
    ) -> object:  # not __call__, which not every caller takes
        if torch.compiler.is_dynamo_compiling() and not self.training:
            return outside_of_graphs(self, args, kwargs)
        if not (self._hfaccel_is_changed() or torch.is_grad_enabled() or is_watched()):
            shortcut = self.shortcut()
            usable = not isinstance(shortcut, str) and shortcut.config is self.__dict__.get("config")
            result = shortcut(args, kwargs) if usable else None  # type: ignore[operator]
            if result is not None:
                return result
        return super().forward(*args, **kwargs)

    def _hfaccel_is_changed(self) -> bool:
        """Whether it is to do something of its own. The shortcut does not look at that: it would have to hold
        the attributes in which it is itself, and a model shall be gone as soon as nobody holds it."""
        return self.training or "forward" in self.__dict__

    def shortcut(self) -> Shortcut | str:
        """Or why there is none. A copy, or a model that was loaded, looks for its own when asked again: the
        first result shall not wait for that."""
        found: Shortcut | str | None = self.__dict__.get("_hfaccel_shortcut")
        if found is None:
            found = self.__dict__["_hfaccel_shortcut"] = NOT_SOUGHT
        elif found is NOT_SOUGHT and _seeking.acquire(blocking=False):  # never waits: a fork may hold it
            try:
                found = _find(self)
            finally:
                _seeking.release()
            if found is not TRAINS:
                self.__dict__["_hfaccel_shortcut"] = found
        return found

    def train(self, mode: bool = True) -> ShortModel:
        found = self.__dict__.get("_hfaccel_shortcut")
        if mode and isinstance(found, Shortcut):
            found.places = None  # they keep packed weights
        super().train(mode)
        return self


class Shortcut:
    """A model's recipe, for as long as nothing has changed since it was found."""

    def __init__(self, model: nn.Module, recipe: Recipe) -> None:
        self.recipe = recipe
        modules = list(_outside(model, recipe.layers))
        hooks = [table for each in modules for table in (each._forward_hooks, each._forward_pre_hooks)]
        self.config = model.config
        self.code = current(modules)  # which the trial of this shortcut will run
        self.unchanged = Snapshot(_held(model, modules), (*hooks, *GLOBAL_HOOKS), (), modules[1:])
        self.places: Places | None = None

    def __call__(self, args: Arguments, kwargs: Keywords) -> Any:
        """What the model returns for these arguments; None where its own forward has to say."""
        given = _given(self.recipe, args, kwargs)
        if given is None or not self.unchanged.holds() or not self.code.holds():
            return None
        places = self.places
        if places is None or not places.unchanged.holds():
            places = self.places = Places(self.recipe)
        recipe, (batch, length) = self.recipe, given[0].shape
        # Whatever Python does comes first: after the kernels it would find what it needs evicted once more.
        rows = torch.empty((batch, length, places.size), dtype=torch.float32)
        layers: Any = list(recipe.layers._modules.values())
        plans = [] if places.problem else plans_of(layers, rows)
        if not plans:
            return None
        call = Call(plans[0], layers[0].hfaccel_family)
        call.sequences = whole(batch, length)
        fields = {recipe.hidden: torch.empty_like(rows)}
        if recipe.pooler is not None:
            fields[recipe.pooled] = torch.empty((batch, places.matrix[1]), dtype=torch.float32)
        result: object = recipe.result(**fields)
        if not places.embed(*given, rows):
            return None
        call.compute(tuple(plan.native for plan in plans), rows, fields[recipe.hidden])
        if recipe.pooler is not None:
            places.pool(fields[recipe.hidden], fields[recipe.pooled])
        return result


class Places:
    """Where the tables, the norm and the pooler of a recipe lie, as the kernels take them."""

    def __init__(self, recipe: Recipe) -> None:
        self.lookups, self.pooler = recipe.lookups, recipe.pooler
        self.size = recipe.lookups[0].table.embedding_dim
        tables, norm = [lookup.table for lookup in recipe.lookups], recipe.norm
        held: list[Held] = [(vars(table), "max_norm", vars(table).get("max_norm")) for table in tables]
        held += ((vars(norm), name, vars(norm).get(name)) for name in EPSILONS)
        modules: list[nn.Module] = [*tables, norm]
        self.problem = _parts_problem(tables, norm)
        if not self.problem:
            self.embedding = native_embedding(norm, tables)
        if self.pooler is not None:
            linear = self.pooler.linear
            modules.append(linear)
            if _is_packed(linear):
                self.matrix, self.pooled = linear.weight.matrix(linear.bias), linear.weight.packing.rows
                held.append((vars(linear.weight), "memory", linear.weight.memory))
            else:
                self.problem = "the pooler is not packed, or not in float32"
        parameters = [
            (each._parameters, name, value) for each in modules for name, value in each._parameters.items()
        ]
        plain = (value for *_, value in parameters if value is not None and type(value) is not PackedWeight)
        self.unchanged = Snapshot([*held, *parameters], (), plain)

    def embed(self, ids: torch.Tensor, types: torch.Tensor | None, output: torch.Tensor) -> bool:
        """Fill `output` (batch, length, size). False where an id is of no row of its table."""
        length = ids.shape[1]
        numbers = {Source.IDS: ids, Source.TYPES: _counted(0, 1) if types is None else types}
        used = [
            _counted(each.first, length) if each.source is Source.POSITIONS else numbers[each.source]
            for each in self.lookups
        ]
        return kernels().embed(
            torch.get_num_threads(),
            self.embedding,
            tuple([(each.data_ptr(), each.numel()) for each in used]),
            output.data_ptr(),
            ids.numel(),
        )

    def pool(self, hidden: torch.Tensor, output: torch.Tensor) -> None:
        """Fill `output` (batch, size) from the first tokens of `hidden` (batch, length, size)."""
        first = hidden if len(hidden) == 1 else hidden[:, 0].contiguous()
        assert self.pooler is not None
        kernels().linear(
            torch.get_num_threads(),
            self.matrix,
            self.pooler.activation,
            first.data_ptr(),
            output.data_ptr(),
            len(hidden),
        )


def _parts_problem(tables: list[nn.Embedding], norm: nn.Module) -> str:
    """Why the kernel cannot look up these and norm the sum; "" where it can."""
    for table in tables:
        if type(table) is not nn.Embedding or table.max_norm is not None or "weight" not in table._parameters:
            return "a table is no plain nn.Embedding"
    if norm_kind(norm) not in (NormKind.LAYER, NormKind.RMS):
        return "the norm was replaced"
    one = Sum([(table, _counted(0, 1)) for table in tables])
    return sum_problem(one, torch.Size((1, 1, tables[0].embedding_dim)), norm)


def _is_packed(linear: PackedModule) -> bool:
    """Whether its own parameters (not what is computed from others) are as the kernels take them."""
    weight, bias = linear.weight, linear.bias
    own = {"weight", "bias"} <= linear._parameters.keys()
    return own and type(weight) is PackedWeight and (bias is None or bias.dtype is torch.float32)


def _given(
    recipe: Recipe, args: Arguments, kwargs: Keywords
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Ids and types of tokens, (batch, length) each, where a call is about nothing else; None otherwise."""
    if args:
        kwargs = {**kwargs, "input_ids": args[0]}
    if len(args) > 1 or not all(_is_default(recipe, name, value) for name, value in kwargs.items()):
        return None
    ids, mask, types = (kwargs.get(name) for name in TENSORS)
    if not _are_numbers(ids) or not all(
        each is None or (_are_numbers(each) and each.shape == ids.shape) for each in (mask, types)
    ):
        return None
    if (mask is not None and _has(mask, 0)) or (recipe.padding is not None and _has(ids, recipe.padding)):
        return None
    return ids, types


def _is_default(recipe: Recipe, name: str, value: object) -> bool:
    """Whether the argument is one of the tensors, or says what would be so without it."""
    if name in TENSORS:
        return True
    if name not in recipe.names and not recipe.more_names:
        return False  # an error, in the model's words
    return value is None or value is (name == "return_dict")


def _are_numbers(tensor: object) -> TypeGuard[torch.Tensor]:
    """Whether it is (batch, length) integers that the kernels can read."""
    if type(tensor) is not torch.Tensor or tensor.dtype is not torch.int64:
        return False
    return tensor.dim() == 2 and tensor.is_cpu and tensor.is_contiguous() and tensor.numel() > 0


def _has(numbers: torch.Tensor, value: int) -> bool:
    """Three times as fast as (numbers == value).any() where the numbers are few."""
    return kernels().count(numbers.data_ptr(), numbers.numel(), value) > 0


@lru_cache(maxsize=64)
def _counted(first: int, length: int) -> torch.Tensor:
    """(1, length): first, first + 1, ..."""
    with torch.inference_mode(False):
        return torch.arange(first, first + length)[None]


def _outside(model: nn.Module, layers: nn.ModuleList) -> Iterator[nn.Module]:
    """All modules but the list of layers, which look after themselves."""
    yield model
    for child in model.children():
        if child is not layers:
            yield from _outside(child, layers)


def _held(model: nn.Module, modules: list[nn.Module]) -> Iterator[Held]:
    for each in modules:
        yield from ((each._modules, name, child) for name, child in each._modules.items())
        if each is not model:
            yield vars(each), "forward", None
            yield vars(each), "training", False
            yield from ((vars(each), name, value) for name, value in own_settings(each))
    config = vars(model.config)
    yield from ((config, name, value) for name, value in config.items())


def shorten(model: nn.Module) -> tuple[list[Step], list[Outcome]]:
    """Give a shortcut to every model in this one that may have one, and say why others have none."""
    steps: list[Step] = []
    left: list[Outcome] = []
    for path, module in list(model.named_modules()):
        if is_candidate(module):
            shortcut = _find(module)
            if not isinstance(shortcut, str):
                unpads = isinstance(module, PaddedModel)
                ShortModel.hfaccel_apply(module, {"unpads": unpads}, model.get_submodule)
                module.__dict__["_hfaccel_shortcut"] = shortcut
                reason = "calls without padding need not run its own forward"
                steps.append(Step(path, "shortcut", {"unpads": unpads}, type(module).__name__, reason))
            else:
                reason = f"every call runs its own forward ({shortcut})"
                left.append(Outcome(type(module).__name__, False, reason))
    return steps, left


def _find(model: nn.Module) -> Shortcut | str:
    if any(each.training for each in model.modules()):
        return TRAINS
    if any(
        each._forward_hooks or each._forward_pre_hooks or "forward" in vars(each) for each in model.modules()
    ):
        return "a part of it has a hook, or a forward that is not its class'"
    try:
        shortcut = Shortcut(model, recipe_of(model))
        problems = (_trial(model, shortcut, arguments) for arguments in _samples(model, shortcut.recipe))
        return next(filter(None, problems), "") or shortcut
    except NoRecipe as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
        return f"{type(error).__name__}: {error}"


def _samples(model: nn.Module, recipe: Recipe) -> Iterator[dict[str, torch.Tensor]]:
    yield {"input_ids": ordinary_ids(model, 2, 8)}
    named = [each for each in named_ids(model) if each != recipe.padding]
    ids = ordinary_ids(model, 1, 24 + len(named))
    ids[0, 8 : 8 + len(named)] = torch.tensor(named, dtype=torch.int64)
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in recipe.names:
        tables = (lookup.table for lookup in recipe.lookups if lookup.source is Source.TYPES)
        kinds = min((table.num_embeddings for table in tables), default=1)
        yield {"input_ids": ids, "token_type_ids": ids % kinds}


def _trial(model: nn.Module, shortcut: Shortcut, arguments: dict[str, torch.Tensor]) -> str:
    """Run the model's forward and the shortcut; "" where they agree."""
    with torch.inference_mode():
        expected, got = model.forward(**arguments), shortcut((), arguments)
    if got is None:
        return "an ordinary call cannot take it"
    if type(got) is not type(expected) or list(got) != list(expected):
        return f"it returns {', '.join(expected)}"
    return difference(tuple(expected.values()), tuple(got.values()))
