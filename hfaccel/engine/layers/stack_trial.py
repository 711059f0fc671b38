"""Calls of a module that loops over fused layers, for the trial of these layers in one call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from hfaccel.engine.layers.call import Mask
from hfaccel.engine.layers.decoder import CACHE, DecoderCall

Trial = Callable[[nn.Module, torch.Tensor, Mask], object]  # gives what the module makes of hidden states


def trial_of(module: nn.Module, layer: Any) -> Trial:
    """For a module whose first layer is this one."""
    if not layer.hfaccel_family.call.follows:
        return _encode
    return partial(_decode if hasattr(module, "save_pretrained") else _decode_rows, layer)


def rows_of(module: nn.Module) -> torch.dtype:
    """The type of the rows that the module's own forward takes: a LayerNorm takes those of its weight's type
    alone."""
    norms = (each.weight for each in module.modules() if isinstance(each, nn.LayerNorm))
    return next((weight.dtype for weight in norms if weight is not None), torch.float32)


def _encode(module: nn.Module, hidden: torch.Tensor, mask: Mask) -> object:
    given = () if mask is None else (mask,)
    return module.forward(hidden.clone(), *given)[0]


def _decode(layer: Any, module: nn.Module, hidden: torch.Tensor, mask: Mask) -> object:
    """Some tokens, and one more that follows them. A model makes its mask and its cache."""
    forward = type(module).forward
    family = layer.hfaccel_family
    given = {"use_cache": True, **family.call.of_model(layer, family, hidden)}
    name, rows = _tokens(family.call, hidden)
    first: Any = forward(module, **{name: rows[:, :-1]}, **given)
    past = first.past_key_values
    second: Any = forward(module, **{name: rows[:, -1:]}, past_key_values=past, **given)
    return first[0], second[0]


def _tokens(call: type[DecoderCall], hidden: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The name of a model's argument, and its value."""
    if call.needs_ids:
        return "input_ids", torch.arange(hidden.shape[1]).expand(len(hidden), -1)
    return "inputs_embeds", hidden


def _decode_rows(layer: Any, module: nn.Module, hidden: torch.Tensor, mask: Mask) -> object:
    """As `_decode`, of a module that is given hidden states, a mask and a cache, as BERT's decoder is."""
    family = layer.hfaccel_family
    given = {CACHE: family.call.empty_cache(), "use_cache": True}
    given |= family.call.of_model(layer, family, hidden)
    results = []
    for rows, keys in ((slice(0, -1), slice(0, -1)), (slice(-1, None), slice(None))):
        shown = None if mask is None else mask[:, :, rows, keys]
        result: Any = type(module).forward(module, hidden[:, rows], attention_mask=shown, **given)
        results.append(result.last_hidden_state)
    return tuple(results)
