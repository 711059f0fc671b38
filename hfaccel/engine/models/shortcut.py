"""A model that follows its fast path instead of running its forward, in calls without padding.

With few tokens, Python takes much of a forward's time, because the weights evict Python's working set from
the cache: 0.4 of 0.9 ms for MiniLM and 8 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.guards import is_watched
from hfaccel.engine.calls.integers import are_integers, count
from hfaccel.engine.calls.ragged import whole
from hfaccel.engine.calls.trials import difference
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.stack import natives_of
from hfaccel.engine.models.around import Around, found_way, seek
from hfaccel.engine.models.fast_path import (
    FastPath,
    Source,
    fast_path_of,
    is_candidate,
    named_ids,
    ordinary_ids,
)
from hfaccel.engine.models.outside import outside_of_graphs
from hfaccel.engine.models.padding import PaddedModel, watch_layers
from hfaccel.engine.models.places import Places
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import Arguments, Find, Keywords, Settings, register
from hfaccel.outcome import Outcome
from hfaccel.replacement import replace, undo_outermost

SHORTCUT = "_hfaccel_shortcut"  # attribute of a model: its Shortcut, or why there is none
TENSORS = ("input_ids", "attention_mask", "token_type_ids")


@register
class ShortModel(PaddedModel):
    """A model with a shortcut, taken by the calls that allow it."""

    hfaccel_name = "shortcut"
    hfaccel_own = (*PaddedModel.hfaccel_own, SHORTCUT)

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
            result = None if shortcut is None else shortcut(args, kwargs)
            if result is not None:
                return result
        return super().forward(*args, **kwargs)

    def _hfaccel_is_changed(self) -> bool:
        """Whether the model is in training mode or has a forward of its own. The shortcut does not check
        this: it would have to hold the model's attributes, which hold the shortcut, and this cycle would keep
        the model alive after its last user."""
        return self.training or "forward" in self.__dict__

    def shortcut(self) -> Shortcut | None:
        return found_way(self, SHORTCUT, _find)

    def train(self, mode: bool = True) -> ShortModel:
        found = self.__dict__.get(SHORTCUT)
        if mode and isinstance(found, Shortcut):
            found.places = None  # they keep packed weights alive
        super().train(mode)
        return self


class Shortcut:
    """A model's fast path, valid while nothing has changed since it was found."""

    def __init__(self, model: nn.Module, fast_path: FastPath) -> None:
        self.fast_path, self.around = fast_path, Around(model, fast_path.layers)
        self.places: Places | None = None

    def __call__(self, args: Arguments, kwargs: Keywords) -> Mapping[str, torch.Tensor] | None:
        """The model's result for these arguments; None if the model's own forward has to compute it."""
        given = _given(self.fast_path, args, kwargs)
        if given is None or not self.around.holds():
            return None
        places = self.places
        if places is None or not places.unchanged.holds():
            places = self.places = Places(self.fast_path)
        fast_path, (batch, length) = self.fast_path, given[0].shape
        # All Python comes before the kernels, which evict its working set.
        rows = torch.empty((batch, length, places.size), dtype=torch.float32)
        layers: Any = list(fast_path.layers._modules.values())
        natives = [] if places.problem else natives_of(layers, rows)
        if not natives:
            return None
        call = Call(natives[0])
        call.sequences = whole(batch, length)
        fields = {fast_path.hidden: torch.empty_like(rows)}
        if fast_path.pooler is not None:
            fields[fast_path.pooled] = torch.empty((batch, places.pooled), dtype=torch.float32)
        result: Mapping[str, torch.Tensor] = fast_path.result(**fields)
        if not places.embed(*given, rows):
            return None
        call.compute(natives, rows, fields[fast_path.hidden])
        if fast_path.pooler is not None:
            places.pool(fields[fast_path.hidden], fields[fast_path.pooled])
        return result


def _given(
    fast_path: FastPath, args: Arguments, kwargs: Keywords
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Ids and token types, (batch, length) each, if the call asks for nothing else; None otherwise."""
    if args:
        kwargs = {**kwargs, "input_ids": args[0]}
    if len(args) > 1 or not all(_is_default(fast_path, name, value) for name, value in kwargs.items()):
        return None
    ids, mask, types = (kwargs.get(name) for name in TENSORS)
    if not are_integers(ids) or not all(
        each is None or (are_integers(each) and each.shape == ids.shape) for each in (mask, types)
    ):
        return None
    if (mask is not None and count(mask, 0)) or (
        fast_path.padding is not None and count(ids, fast_path.padding)
    ):
        return None
    return ids, types


def _is_default(fast_path: FastPath, name: str, value: object) -> bool:
    """Whether the argument is one of the tensors, or equals its default."""
    if name in TENSORS:
        return True
    if name not in fast_path.names and not fast_path.more_names:
        return False  # an error, in the model's words
    return value is None or value is (name == "return_dict")


def shorten(model: nn.Module) -> tuple[list[Step], list[Outcome]]:
    """Give a shortcut to every model inside `model` that can have one. Returns the steps, and the report's
    lines about the others."""
    steps: list[Step] = []
    left: list[Outcome] = []
    for path, module in list(model.named_modules()):
        if is_candidate(module):
            shortcut = _find(module)
            if not isinstance(shortcut, str):
                unpads = isinstance(module, PaddedModel)
                ShortModel.hfaccel_apply(module, {"unpads": unpads}, model.get_submodule)
                module.__dict__[SHORTCUT] = shortcut
                reason = "calls without padding need not run its own forward"
                steps.append(Step(path, "shortcut", {"unpads": unpads}, type(module).__name__, reason))
            else:
                reason = f"every call runs its own forward ({shortcut})"
                left.append(Outcome(type(module).__name__, False, reason))
    return steps, left


def _find(model: nn.Module) -> Shortcut | str:
    def attempt() -> Shortcut | str:
        shortcut = Shortcut(model, fast_path_of(model))
        problems = (_trial(model, shortcut, arguments) for arguments in _samples(model, shortcut.fast_path))
        return next(filter(None, problems), "") or shortcut

    return seek(model, attempt)


def _samples(model: nn.Module, fast_path: FastPath) -> Iterator[dict[str, torch.Tensor]]:
    yield {"input_ids": ordinary_ids(model, 2, 8)}
    named = [each for each in named_ids(model) if each != fast_path.padding]
    ids = ordinary_ids(model, 1, 24 + len(named))
    ids[0, 8 : 8 + len(named)] = torch.tensor(named, dtype=torch.int64)
    yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "token_type_ids" in fast_path.names:
        tables = (lookup.table for lookup in fast_path.lookups if lookup.source is Source.TYPES)
        kinds = min((table.num_embeddings for table in tables), default=1)
        yield {"input_ids": ids, "token_type_ids": ids % kinds}


def _trial(model: nn.Module, shortcut: Shortcut, arguments: dict[str, torch.Tensor]) -> str:
    """Run the model's forward and the shortcut; "" if the results agree."""
    with torch.inference_mode():
        expected, got = model.forward(**arguments), shortcut((), arguments)
    if got is None:
        return "an ordinary call cannot use it"
    if type(got) is not type(expected) or list(got) != list(expected):
        return f"it returns {', '.join(expected)}"
    return difference(tuple(expected.values()), tuple(got.values()))
