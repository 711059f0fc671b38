"""Whether a model's results depend on the values at padding positions. Two calls answer the question.

The pooler of SigLIP takes the last token of a text, whether it is padding or not; another head may take the
mean of all tokens. The layers of these models compute padding in every call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn

from hfaccel.engine.calls.fallback import COUNTED
from hfaccel.engine.calls.trials import difference, unwatched, without_padding
from hfaccel.engine.calls.unpadding import UNPADS, computed
from hfaccel.engine.models.fast_path import named_ids, ordinary_ids
from hfaccel.engine.models.padding import all_around, models_around, padding_id, why_always
from hfaccel.engine.plan import Step

BATCH, LENGTH, REAL = 2, 8, 5  # the first text has REAL tokens, the rest is padding


def compute_where_read(model: nn.Module, steps: Sequence[Step]) -> list[Step]:
    """Let fused layers compute padding in the models whose results depend on padding. Returns the updated
    steps."""
    layers = {model.get_submodule(step.path): step for step in steps}
    unpadding = [layer for layer in layers if layer.__dict__[UNPADS]]
    around = all_around(model, unpadding)
    for inner in models_around(model, unpadding):
        if why_always(inner) or padding_id(inner) is None:
            continue  # padding is computed anyway
        outer = [each for each in around if each is not inner and inner in list(each.modules())]
        if _depends(inner, inner) is False and not any(_depends(each, inner) for each in outer):
            continue
        for layer in inner.modules():
            if layer in layers:
                layer.__dict__[UNPADS] = False
    return [
        replace(step, settings={**step.settings, "unpad": vars(layer)[UNPADS]})
        for layer, step in layers.items()
    ]


def _depends(model: nn.Module, inner: nn.Module) -> bool | None:
    """Whether the results of `model` (`inner`, or a model that contains `inner`) depend on padding; None if
    the model cannot be called with ids and a mask, or is in training mode."""
    if any(each.training for each in model.modules()):
        return None  # a trial would draw from the program's random numbers
    for arguments in _arguments(inner):
        try:
            expected, got = (_call(model, arguments, padding) for padding in (True, False))
        except Exception:  # noqa: BLE001 (a foreign forward may raise anything if it wants other arguments)
            continue
        return bool(difference(expected, got))
    return None


def _arguments(inner: nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Inputs for a model of texts, of multiple choices, and with a decoder."""
    ids = ordinary_ids(inner, BATCH, LENGTH)
    mask = torch.ones_like(ids)
    mask[0, REAL:] = 0
    end = getattr(inner.config, "eos_token_id", None)
    if end in named_ids(inner):  # some heads look for exactly one end token in each text
        ids[:, REAL - 1] = end
    ids = ids.masked_fill(mask == 0, padding_id(inner) or 0)
    given = {"input_ids": ids, "attention_mask": mask}
    yield given
    yield {name: value[None] for name, value in given.items()}
    yield {**given, "decoder_input_ids": ids}


def _call(model: nn.Module, arguments: dict[str, torch.Tensor], padding: bool) -> tuple[object, ...]:
    """The tensors of the result, with zeros at padding positions."""
    parts = list(model.modules())
    with torch.inference_mode(), unwatched(parts), computed() if padding else nullcontext():
        result = model.forward(**arguments)
    for part in parts:
        part.__dict__.pop(COUNTED, None)
    values = result.values() if hasattr(result, "values") else result
    tensors = [each for each in values if isinstance(each, torch.Tensor) and each.is_floating_point()]
    return tuple(without_padding(each, arguments["attention_mask"] == 0) for each in tensors)
