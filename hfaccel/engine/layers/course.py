"""One call for layers of a decoder that the model gives different masks or rotary positions.

Gemma's layers alternate between windows and none. As long as a text is shorter than the window, all see the
same; then they differ by their rotary positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from hfaccel.engine.layers.decoder import DecoderCall
from hfaccel.engine.layers.native_layer import NativeLayer
from hfaccel.engine.replacements import Arguments, Keywords

Given = tuple[Arguments, Keywords]  # what a run of layers was given


class Run(Protocol):
    """Layers that are given the same."""

    layers: list[nn.Module]

    def natives(self, hidden: torch.Tensor) -> Sequence[NativeLayer]: ...

    def __call__(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object: ...


class Course:
    """Runs of layers, each of which the model gives its own mask and rotary positions. All are computed when
    the last has been given its own: in one call, as long as their windows hide nothing. `whole`: all layers.
    `kinds`: of each run; those of one kind are given the same."""

    def __init__(self, runs: Sequence[Run], whole: Run, kinds: Sequence[object]) -> None:
        self.runs, self.whole = runs, whole
        self.firsts = [kinds.index(kind) for kind in kinds]  # of each run, the first of its kind
        self.given: list[Given] = []

    def stand_ins(self) -> list[object]:
        """One for each layer's place in the list."""
        others = (len(run.layers) - 1 for run in self.runs)
        return [each for count in others for each in (self._take, *[self._pass] * count)]

    def _take(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        self.given.append((args, kwargs))
        if len(self.given) < len(self.runs):
            return self._pass(hidden_states)
        given, self.given = self.given, []
        result = self._at_once(hidden_states, given)
        return self._in_turn(hidden_states, given) if result is None else result

    def _pass(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> object:
        layer: Any = self.whole.layers[0]
        family = getattr(layer, "hfaccel_family", None)  # None: its fusion was undone
        return (hidden_states, None) if family and family.call.gives_pair else hidden_states

    def _at_once(self, hidden: torch.Tensor, given: Sequence[Given]) -> object:
        """The result of one call; None where there must be more."""
        natives = self.whole.natives(hidden)
        if not natives or not all(map(are_same, given, (given[first] for first in self.firsts))):
            return None
        calls: dict[int, DecoderCall] = {}
        for first in set(self.firsts):
            layer: Any = self.runs[first].layers[0]
            calls[first] = layer.hfaccel_family.call(natives[self.whole.layers.index(layer)])
            if calls[first].read(hidden, *given[first], layer.unpads):
                return None
        call = calls[0]
        if not see_the_same([*calls.values()], natives, hidden.shape[1]) or call.together_problem(natives):
            return None
        runs = zip(self.firsts, self.runs, strict=True)
        call.turns = [calls[first] for first, run in runs for _ in run.layers]
        try:
            return call.run(hidden, natives)
        finally:
            call.turns = ()  # it is one of them, and would keep the cache

    def _in_turn(self, hidden: torch.Tensor, given: Sequence[Given]) -> object:
        result: Any = hidden
        for run, (args, kwargs) in zip(self.runs, given, strict=True):
            result = run(result[0] if isinstance(result, tuple) else result, *args, **kwargs)
        return result


def are_same(one: Given, other: Given) -> bool:
    """Whether these are the same objects."""
    (args, keywords), (others, other_keywords) = one, other
    if len(args) != len(others) or keywords.keys() != other_keywords.keys():
        return False
    pairs = [*zip(args, others, strict=True), *((keywords[name], other_keywords[name]) for name in keywords)]
    return all(a is b for a, b in pairs)


def see_the_same(calls: Sequence[DecoderCall], natives: Sequence[NativeLayer], columns: int) -> bool:
    """Whether calls for rows of this many columns differ by rotary positions alone. `natives`: the layers of
    all of them."""
    first = calls[0]
    windows = [native.window for native in natives if native.window >= 0]
    if any(call.slots is not None or call.places or call.bias is not None for call in calls):
        return False
    if any(call.past != first.past for call in calls) or first.past + columns - 1 > min(
        windows, default=2**31
    ):
        return False
    return all(_equal(call.followed.seen, first.followed.seen) for call in calls)


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)
