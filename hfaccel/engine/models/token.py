"""A language model that computes one more token of each text without its own forwards.

generate() calls a model once for each token. Of a small model's token, Python takes a large part: it makes a
mask, positions and several objects, and finds its working set evicted by the weights at every step. And where
threads wait passively, each call of the kernels has to wake them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hfaccel.engine.calls.guards import is_watched
from hfaccel.engine.calls.trials import ROUNDED, TOLERANCE, difference
from hfaccel.engine.layers.decoder import CACHE
from hfaccel.engine.layers.rooms import new_cache
from hfaccel.engine.layers.stack import FusedDecoder
from hfaccel.engine.models.around import found_way, seek
from hfaccel.engine.models.fast_path import ordinary_ids
from hfaccel.engine.models.next_token import IDS, NextToken, is_one_token
from hfaccel.engine.models.outside import outside_of_graphs
from hfaccel.engine.models.token_path import TokenPath, token_path_of
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import ModuleReplacement, register
from hfaccel.outcome import Outcome

NEXT = "_hfaccel_token"  # attribute of a model: its NextToken, or why there is none


@register
class TokenModel(ModuleReplacement):
    """A language model with a way past its own forward, taken by the calls that allow it."""

    hfaccel_name = "token"
    hfaccel_signatures = ("forward",)
    hfaccel_own = (NEXT,)

    def hfaccel_forget_places(self) -> None:
        self.__dict__.pop(NEXT, None)

    def train(self, mode: bool = True) -> TokenModel:
        self.hfaccel_forget_places()
        super().train(mode)
        return self

    def forward(self, *args: object, **kwargs: object) -> object:
        if torch.compiler.is_dynamo_compiling() and not self.training:
            return outside_of_graphs(self, args, kwargs)
        if not args and is_one_token(kwargs) and not self._hfaccel_is_changed():
            found = found_way(self, NEXT, _find)
            result = None if found is None else found(kwargs)
            if result is not None:
                return result
        return super().forward(*args, **kwargs)

    def _hfaccel_is_changed(self) -> bool:
        return self.training or "forward" in self.__dict__ or torch.is_grad_enabled() or is_watched()


def find_tokens(model: nn.Module) -> tuple[list[Step], list[Outcome]]:
    """Give a path for tokens to every model inside `model` that can have one. Returns the steps, and the
    report's lines about the others."""
    steps: list[Step] = []
    left: list[Outcome] = []
    for path, module in list(model.named_modules()):
        if not _is_candidate(module):
            continue
        found = _find(module)
        if isinstance(found, str):
            left.append(Outcome(type(module).__name__, False, f"every token runs its own forward ({found})"))
        else:
            TokenModel.hfaccel_apply(module, {}, model.get_submodule)
            module.__dict__[NEXT] = found
            reason = "a token that follows others need not run its own forward"
            steps.append(Step(path, "token", {}, type(module).__name__, reason))
    return steps, left


def _is_candidate(module: Any) -> bool:
    return (
        hasattr(module, "save_pretrained")
        and not isinstance(module, ModuleReplacement)
        and callable(getattr(module, "get_output_embeddings", None))
        and module.get_output_embeddings() is not None
        and any(isinstance(each, FusedDecoder) for each in module.modules())
    )


def _find(model: Any) -> NextToken | str:
    def attempt() -> NextToken | str:
        with torch.inference_mode():
            return _tried(model, token_path_of(model))

    return seek(model, attempt)


def _tried(model: Any, path: TokenPath) -> NextToken | str:
    """The path, or how some tokens that it computes differ from the model's own."""
    made: NextToken | None = None
    for batch, length in ((1, 3), (2, 5)):
        ids, caches = ordinary_ids(model, batch, length + 2), (new_cache(), new_cache())
        for cache in caches:
            model.forward(input_ids=ids[:, :length], past_key_values=cache, use_cache=True)
        for token in ids[:, length:].split(1, 1):
            own, ours = ({IDS: token.contiguous(), CACHE: cache, "use_cache": True} for cache in caches)
            expected = model.forward(**own)
            made = made or NextToken(model, path, expected)
            if problem := _difference(expected, made(ours)):
                return problem
    assert made is not None
    return made


def _difference(expected: Any, got: Any) -> str:
    if got is None:
        return "an ordinary call cannot use it"
    if type(got) is not type(expected) or list(got) != list(expected):
        return f"it returns {', '.join(expected)}"
    tolerance = TOLERANCE if expected.logits.dtype is torch.float32 else ROUNDED
    own, ours = ((result.logits, *_numbers(result.past_key_values)) for result in (expected, got))
    return difference(own, ours, tolerance)


def _numbers(cache: Any) -> Iterator[torch.Tensor]:
    for layer in cache.layers:
        yield from (layer.keys, layer.values)
