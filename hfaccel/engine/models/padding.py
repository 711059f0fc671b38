"""Which calls of a model may leave out padding: those in which nobody reads the values at padding positions.

A fused layer leaves out the tokens that no token attends to, and returns zeros for them. Whoever reads these
zeros must know that they are padding:

- A text model gets ids and a mask of the same shape. What the mask hides is padding if the id is the padding
  token. Other hidden tokens (ColBERT's query expansion) are read although no token attends to them. Without
  ids, or with a mask of another shape, nobody can tell.
- A speech model gets a mask of samples and returns frames. Its caller has no mask of frames and reads all of
  them: a CTC decoder decodes them, other heads average them.
- Question answering compares the scores of all positions.
- Most heads and poolers read the first token of a text. A few read the last token, or all: calls with and
  without padding show whether the results depend on padding (`hfaccel.engine.models.dependence`).
- A hook in a layer, or a part that the program has replaced, sees all positions.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn

from hfaccel.engine.calls.guards import is_traced
from hfaccel.engine.calls.unpadding import UNPADS, computed, is_computed
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import (
    Arguments,
    Find,
    Keywords,
    ModuleReplacement,
    Paths,
    Settings,
    register,
)
from hfaccel.replacement import replace

IDS, MASK = "input_ids", "attention_mask"
COMPARING = "QuestionAnswering"  # in the names of classes whose results are compared across positions
DEPENDS = "its results depend on padding or may do so, or its layers cannot leave padding out"

# Attribute of a model: Counter of reasons why calls computed padding.
PADDED = "_hfaccel_padded"
# Attributes of a model: the paths of its fused layers, and the links that were found there.
LAYERS, LINKS = "_hfaccel_layers", "_hfaccel_links"
# The parent's table, the name in it, and the fused layer; None if the name holds another module.
Link = tuple[dict[str, nn.Module | None], str, FusedLayer | None]
UNKNOWN = "the mask hides more than the padding token, or is not of the shape of input_ids"


@register
class PaddedModel(ModuleReplacement):
    """A model that tells its fused layers when to compute padding. Its key: whether they ever leave out
    padding."""

    hfaccel_name = "padding"
    hfaccel_signatures = ("forward",)
    hfaccel_own: ClassVar[tuple[str, ...]] = (PADDED, LINKS)

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        watch_layers(module)
        replace(module, cls, bool(settings.get("unpads", True)))

    def hfaccel_settings(self, paths: Paths) -> Settings:
        return {"unpads": bool(self.hfaccel_key)}

    def forward(self, *args: object, **kwargs: object) -> object:  # sentence-transformers calls it directly
        if self.training and torch.compiler.is_dynamo_compiling():
            return super().forward(*args, **kwargs)  # a training model is compiled as without hfaccel
        return self._hfaccel_forward(*args, **kwargs)

    @torch.compiler.disable(recursive=False)
    def _hfaccel_forward(self, *args: object, **kwargs: object) -> object:
        reason = self._hfaccel_reads_padding(args, kwargs)
        if not reason:
            return super().forward(*args, **kwargs)
        padded_calls_of(self)[reason] += 1
        with computed():
            return super().forward(*args, **kwargs)

    def _hfaccel_reads_padding(self, args: Arguments, kwargs: Keywords) -> str:
        """Why this call computes its padding; "" if there is none, if padding is left out, or if the call
        takes the model's own path."""
        if not self.hfaccel_key or torch.is_grad_enabled() or is_traced() or is_computed():
            return ""
        ids, mask = _given(self.hfaccel_original, args, kwargs)
        if mask is None:
            return ""
        if not _hides(mask):
            return ""
        known = why_always(self) or hides_padding_alone(ids, mask, padding_id(self))
        if isinstance(known, str):
            return known
        return _changed_layer(self) if known else UNKNOWN


def _changed_layer(model: nn.Module) -> str:
    """Why one of the model's fused layers takes its own path or is watched; "" for none. Hooks, code and
    parts that the program has added may read padding positions."""
    codes = set()
    for table, name, layer in _links(model):
        if table.get(name) is not layer or layer is None:
            return "a layer was replaced"
        native = layer.unwatched_native()
        if isinstance(native, str):
            return native
        codes.add(native.code)
    return next((code.problem() for code in codes if not code.holds()), "")


def watch_layers(model: nn.Module) -> None:
    """Note the paths of the model's fused layers. All attributes are set here, because a later one would end
    the model's shortcut."""
    model.__dict__[LAYERS] = tuple(name for name, part in model.named_modules() if UNPADS in vars(part))
    padded_calls_of(model), _links(model)


def _links(model: nn.Module) -> list[Link]:
    """A link to each layer that was fused."""
    links: list[Link] | None = model.__dict__.get(LINKS)
    if links is None:
        links, parts = [], dict(model.named_modules())
        for path in model.__dict__.get(LAYERS, ()):
            parent, _, name = path.rpartition(".")
            if path in parts:
                found = parts[path]
                links.append((parts[parent]._modules, name, found if isinstance(found, FusedLayer) else None))
        model.__dict__[LINKS] = links
    return links


def padded_calls_of(model: nn.Module) -> Counter[str]:
    calls: Counter[str] = model.__dict__.setdefault(PADDED, Counter())
    return calls


def why_always(model: nn.Module) -> str:
    """Why every call of this model computes padding; "" if the ids of a call decide."""
    if COMPARING in type(model).__name__:
        return "answers are sought at every position"
    if getattr(model, "main_input_name", IDS) != IDS:
        return "its results have other positions than its mask"
    return ""


def padding_id(model: Any) -> int | None:
    padding: int | None = getattr(model.config, "pad_token_id", None)
    return getattr(model.get_input_embeddings(), "padding_idx", None) if padding is None else padding


def hides_padding_alone(ids: object, mask: object, padding: int | None) -> bool:
    """Whether the mask is known to hide nothing but padding tokens behind the texts."""
    if padding is None or not isinstance(ids, torch.Tensor) or not isinstance(mask, torch.Tensor):
        return False
    if ids.shape != mask.shape or ids.dim() != 2:
        return False
    hides = mask == 0
    return not bool(hides[:, 0].any()) and not bool((hides & (ids != padding)).any())


def _hides(mask: object) -> bool:
    """Whether the mask hides something. Anything but a 2-dimensional tensor counts as hiding something."""
    return not isinstance(mask, torch.Tensor) or mask.dim() != 2 or bool((mask == 0).any())


def _given(stock: type[nn.Module], args: Arguments, kwargs: Keywords) -> tuple[object, object]:
    """The ids and the mask of a call."""
    values = [kwargs.get(name) for name in (IDS, MASK)]
    for number, place in enumerate(_places(stock.forward) if args else ()):
        if place < len(args):
            values[number] = args[place]
    return values[0], values[1]


@lru_cache(maxsize=256)
def _places(forward: Callable[..., object]) -> tuple[int, int]:
    """The indices of ids and mask among the positional arguments."""
    names = [*inspect.signature(forward).parameters][1:]
    ids, mask = (names.index(name) if name in names else len(names) for name in (IDS, MASK))
    return ids, mask


def find_padding(model: nn.Module, layers: list[nn.Module]) -> list[Step]:
    """Steps for the models that contain these fused layers and tell them when to compute padding."""
    steps, paths = [], {module: path for path, module in model.named_modules()}
    for each in models_around(model, layers):
        why, padding = why_always(each) or _depends(each), padding_id(each)
        reason = f"padding is computed: {why}"
        if not why:
            reason = (
                f"padding is left out where the mask hides nothing but the padding token, {padding}, "
                "behind the texts"
            )
        if not why and padding is None:
            reason = "padding is computed: it has no pad_token_id"
        steps.append(Step(paths[each], "padding", {"unpads": True}, type(each).__name__, reason))
    return steps


def _depends(model: nn.Module) -> str:
    """DEPENDS if all layers of the model compute padding; otherwise ""."""
    layers = [layer for layer in model.modules() if UNPADS in vars(layer)]
    return DEPENDS if layers and not any(vars(layer)[UNPADS] for layer in layers) else ""


def models_around(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """The innermost models, which get the ids, and outer models that always read padding."""
    around = all_around(model, layers)
    next_to = [each for each in around if not any(part in around for part in list(each.modules())[1:])]
    return [each for each in around if each in next_to or COMPARING in type(each).__name__]


def all_around(model: nn.Module, layers: list[nn.Module]) -> list[nn.Module]:
    """`model` and the models inside, if they contain one of these layers."""
    inside = {id(layer) for layer in layers}
    return [
        each
        for each in model.modules()
        if hasattr(each, "save_pretrained")
        and not isinstance(each, ModuleReplacement)
        and any(id(part) in inside for part in each.modules())
    ]
