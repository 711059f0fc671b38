"""A model's fast path: a description of how its result follows from its ids, found by calling the model.

Before and after its layers, a model of transformers does little: it looks up some tables, and a pooler reads
the result of the layers. Yet this takes some hundred steps of Python. A fast path describes the same
computation, for calls without padding, in a few fields.
"""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from hfaccel.engine.kernels import ACTIVATIONS, Activation
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.embeddings import FusedEmbeddings, Sum, summed
from hfaccel.engine.layers.stack import FusedDecoder, FusedStack
from hfaccel.engine.replacements import Arguments, Keywords
from hfaccel.engine.weights.linear import PackedModule


class NoFastPath(Exception):
    """The reason why a model has no fast path."""


class Source(Enum):
    """The indices with which a table is looked up."""

    IDS = "ids"
    TYPES = "types of tokens"  # 0 if none are given
    POSITIONS = "positions"


@dataclass(frozen=True)
class Lookup:
    table: nn.Embedding
    source: Source
    first: int = 0  # position


@dataclass(frozen=True)
class Pooler:
    """activation(linear(first token))"""

    linear: PackedModule
    activation: Activation


@dataclass(frozen=True)
class FastPath:
    """The layers get the norm of a sum of lookups; the layers and a pooler make the result."""

    lookups: tuple[Lookup, ...]
    norm: nn.Module
    layers: nn.ModuleList
    pooler: Pooler | None
    result: type
    hidden: str  # the field of the result that the layers fill
    pooled: str  # the field that the pooler fills
    padding: int | None  # an id that is not counted as a position
    names: frozenset[str]  # of the arguments of the model's forward
    more_names: bool  # the forward takes any other name too


@dataclass(frozen=True)
class _Note:
    """One call of a module: its arguments, and the tensor that it returned."""

    args: Arguments
    kwargs: Keywords
    gave: torch.Tensor

    @property
    def given(self) -> list[int]:
        """The ids (by `id()`) of the tensors among the arguments."""
        return [id(each) for each in (*self.args, *self.kwargs.values()) if isinstance(each, torch.Tensor)]


def is_candidate(model: nn.Module) -> bool:
    """Whether this model, and no model inside of it, may have a fast path."""
    models = (module for module in model.modules() if hasattr(module, "save_pretrained"))
    return [module for module in models if _parts(module)] == [model]


def fast_path_of(model: nn.Module) -> FastPath:
    """The fast path of a model. Raises NoFastPath."""
    parameters = inspect.signature(model.forward).parameters
    if next(iter(parameters), "nothing") != "input_ids":
        raise NoFastPath("its forward does not take input_ids first")
    parts = _parts(model)
    if parts is None:
        raise NoFastPath("a part of it was replaced")
    embeddings, stack = parts
    layers: Any = stack.get_submodule(stack.hfaccel_list)
    family = layers[0].hfaccel_family
    if family.call is not Call or family.rotary:
        raise NoFastPath("its layers are given more than hidden states")
    ids = ordinary_ids(model, 2, 8)
    result, notes = _call(model, ids)
    if not hasattr(result, "items"):
        raise NoFastPath(f"it returns a {type(result).__name__}")
    if embeddings not in notes or stack not in notes:
        raise NoFastPath("ids alone do not reach its parts")
    if notes[stack].given != [id(notes[embeddings].gave)]:
        raise NoFastPath("the input of its layers is not the norm of a sum")
    value, norm = summed(embeddings, notes[embeddings].args, notes[embeddings].kwargs)
    lookups = _lookups(value, ids)
    hidden = id(notes[stack].gave)
    fields = {id(tensor): name for name, tensor in result.items()}
    poolers = [each for each, note in notes.items() if note.given == [hidden] and id(note.gave) in fields]
    made = [id(notes[pooler].gave) for pooler in poolers]
    if len(poolers) > 1 or sorted(fields) != sorted([hidden, *made]):
        raise NoFastPath("its result is not what its layers and a pooler give")
    return FastPath(
        lookups=lookups,
        norm=norm,
        layers=layers,
        pooler=_pooler(poolers[0]) if poolers else None,
        result=type(result),
        hidden=fields[hidden],
        pooled=fields[made[0]] if made else "",
        padding=_uncounted(model, embeddings, lookups),
        names=frozenset(parameters),
        more_names=any(each.kind is each.VAR_KEYWORD for each in parameters.values()),
    )


def _pooler(module: nn.Module) -> Pooler:
    """The pooler, as its parts suggest. A trial tests it later."""
    linear, activation = None, Activation.NONE
    for part in module.children():
        if isinstance(part, PackedModule):
            linear = part
        elif type(part).__name__ in ACTIVATIONS:
            activation = ACTIVATIONS[type(part).__name__]
        elif type(part) is not nn.Dropout:
            raise NoFastPath(f"its pooler has a {type(part).__name__}")
    if linear is None:
        raise NoFastPath("its pooler is not packed")
    return Pooler(linear, activation)


def ordinary_ids(model: Any, batch: int, length: int) -> torch.Tensor:
    """Random ids, but none from `named_ids`."""
    named = named_ids(model)
    nameless = [each for each in range(model.get_input_embeddings().num_embeddings) if each not in named]
    choice = torch.randint(len(nameless), (batch, length), generator=torch.Generator().manual_seed(0))
    return torch.tensor(nameless)[choice]


def named_ids(model: Any) -> list[int]:
    """Ids with a role in the config or the table: padding, mask, begin, end."""
    table = model.get_input_embeddings()
    named = [value for name, value in vars(model.config).items() if name.endswith("_token_id")]
    known = {each for each in (*named, table.padding_idx) if isinstance(each, int)}
    return sorted(each for each in known if 0 <= each < table.num_embeddings)


def _parts(model: nn.Module) -> tuple[FusedEmbeddings, FusedStack] | None:
    """The part that looks up embeddings and the part that runs the layers; None unless there is exactly one
    of each, and for a decoder."""
    embeddings = [module for module in model.modules() if isinstance(module, FusedEmbeddings)]
    stacks = [module for module in model.modules() if isinstance(module, FusedStack)]
    if len(embeddings) != 1 or len(stacks) != 1 or isinstance(stacks[0], FusedDecoder):
        return None
    return embeddings[0], stacks[0]


def _call(model: nn.Module, ids: torch.Tensor) -> tuple[Any, dict[nn.Module, _Note]]:
    """The model's result, and a note of each call of its two parts and its direct children."""
    notes: dict[nn.Module, _Note] = {}
    own = threading.get_ident()

    def note(module: nn.Module, args: Arguments, kwargs: Keywords, output: Any) -> None:
        if threading.get_ident() == own:  # other threads may call the model meanwhile
            notes[module] = _Note(args, kwargs, output if isinstance(output, torch.Tensor) else output[0])

    watched = dict.fromkeys((*(_parts(model) or ()), *model.children()))
    handles = [each.register_forward_hook(note, with_kwargs=True) for each in watched]
    try:
        with torch.inference_mode():
            return model.forward(input_ids=ids), notes
    finally:
        for handle in handles:
            handle.remove()


def _lookups(value: Sum, ids: torch.Tensor) -> tuple[Lookup, ...]:
    lookups = []
    for table, used in value.summands:
        used = used.expand_as(ids)
        first = int(used[0, 0])
        if torch.equal(used, ids):
            lookups.append(Lookup(table, Source.IDS))
        elif torch.equal(used, torch.arange(first, first + ids.shape[1]).expand_as(ids)):
            lookups.append(Lookup(table, Source.POSITIONS, first))
        elif not used.any():
            lookups.append(Lookup(table, Source.TYPES))
        else:
            raise NoFastPath("a table is looked up with neither ids, nor types, nor positions")
    return tuple(lookups)


def _uncounted(model: Any, embeddings: nn.Module, lookups: tuple[Lookup, ...]) -> int | None:
    """The padding id, if the position of a token depends on padding before it."""
    padding = model.get_input_embeddings().padding_idx
    if padding is None:
        padding = model.config.pad_token_id
    if padding is None:
        return None
    ids = ordinary_ids(model, 2, 8)
    ids[1, 3:5] = padding
    _, notes = _call(model, ids)
    value, _ = summed(embeddings, notes[embeddings].args, notes[embeddings].kwargs)
    try:
        return None if _lookups(value, ids) == lookups else int(padding)
    except NoFastPath:
        return int(padding)
