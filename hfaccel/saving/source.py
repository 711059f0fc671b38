"""Where a saved model's weights come from, so that it can be made again where its files cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfaccel.errors import HfaccelError
from hfaccel.optimization import optimize
from hfaccel.precision import named
from hfaccel.reporting import Record
from hfaccel.saving.files import Document
from hfaccel.saving.parts import model_class, names
from hfaccel.upstream.of_transformers import attention_of, revision_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_source(model: PreTrainedModel, record: Record) -> tuple[Document | None, str]:
    """How to make the model again, or None and why that cannot be done.

    It is tried, because a model may have been trained, or given a new head, since it was loaded: then the
    checkpoint under its name is not what it consists of.
    """
    name = model.config.name_or_path
    if not name:
        return None, "the model was not loaded from a checkpoint"
    folder = Path(name)
    source = {
        "class": type(model).__name__,
        "checkpoint": str(folder.resolve()) if folder.is_dir() else name,
        "revision": None if folder.is_dir() else revision_of(model.config),
        "dtype": str(model.config.dtype or model.dtype).removeprefix("torch."),
        "attention": attention_of(model.config),
        "precision": record.precision.value if record.precision else None,
        "unpad": record.unpad,
        "kv_cache": record.kv_cache,
    }
    try:
        stock = _stock(source)
        source["contents"] = contents(stock)
        again = _optimized(stock, source)
    except (OSError, ValueError, HfaccelError) as error:
        return None, f"{name} cannot be loaded again ({error})"
    problem = _difference(model, again)
    return (None, f"{name} has other values than the model in {problem}") if problem else (source, "")


def make_again(source: Document) -> PreTrainedModel:
    """The optimized model, from its checkpoint. Raises HfaccelError where that is not what it was."""
    try:
        stock = _stock(source)
    except (OSError, ValueError) as error:
        raise HfaccelError(f"{source['checkpoint']} cannot be loaded ({error})") from None
    if contents(stock) != source["contents"]:
        raise HfaccelError(f"{source['checkpoint']} has other values than when the model was saved")
    return _optimized(stock, source)


def _stock(source: Document) -> PreTrainedModel:
    cls = model_class(source["class"], source["attention"])
    return cls.from_pretrained(
        source["checkpoint"],
        dtype=getattr(torch, source["dtype"]),
        attn_implementation=source["attention"],
        **({"revision": source["revision"]} if source["revision"] else {}),
    ).eval()


def _optimized(stock: PreTrainedModel, source: Document) -> PreTrainedModel:
    wanted = named(source["precision"])
    arguments = wanted.arguments() if wanted else {}
    kept = {"kv_cache": source.get("kv_cache", "auto")}  # older folders have none
    return optimize(stock, inplace=True, unpad=source["unpad"], **kept, **arguments)


def contents(model: nn.Module) -> str:
    """A hash of all values with their names; it does not depend on how they lie in memory."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(names(model).items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for part in _parts(tensor):
            values: Any = part.detach().contiguous().view(-1).view(torch.uint8).numpy()
            found.update(memoryview(values))
    return found.hexdigest()


def _parts(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Those that hold the values: of a quantized tensor its numbers and scales."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _parts(getattr(tensor, name))


def _difference(model: nn.Module, again: nn.Module) -> str:
    """The first tensor that is not equal; "" for none."""
    found = names(again)
    for name, tensor in names(model).items():
        if name not in found or not torch.equal(found[name], tensor):
            return name
    return ""
