"""Models that torch.compile must not compile, because their forwards consist of packed linear layers.

A packed layer cannot be part of a torch graph. torch.compile would cut a decoder into hundreds of graphs, and
entering these costs more than compiling the few operations between two layers gains. So such a model, when
compiled, runs its whole forward outside of graphs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hfaccel.engine.calls.guards import outside_graphs
from hfaccel.engine.layers.embeddings import FusedEmbeddings
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.engine.layers.stack import FusedStack
from hfaccel.engine.models.padding import PaddedModel
from hfaccel.engine.plan import Step
from hfaccel.engine.replacements import Arguments, Keywords, ModuleReplacement, register
from hfaccel.engine.weights.linear import PackedModule

THEMSELVES = (FusedLayer, FusedStack, FusedEmbeddings, PaddedModel)  # they handle torch.compile themselves


@register
class OutsideModel(ModuleReplacement):
    """A model whose whole call stays outside of torch's graphs."""

    hfaccel_name = "outside"
    hfaccel_signatures = ("forward",)

    def forward(self, *args: object, **kwargs: object) -> object:
        if torch.compiler.is_dynamo_compiling() and not self.training:
            return outside_of_graphs(self, args, kwargs)
        return super().forward(*args, **kwargs)


@outside_graphs
def outside_of_graphs(model: nn.Module, args: Arguments, kwargs: Keywords) -> object:
    """Call the model outside of any graph."""
    return type(model).forward(model, *args, **kwargs)


def find_outside(model: nn.Module) -> list[Step]:
    """The models inside `model` whose own linear layers are packed."""
    return [
        Step(path, "outside")
        for path, module in model.named_modules()
        if hasattr(module, "save_pretrained")
        and not isinstance(module, ModuleReplacement)
        and any(_own(module))
    ]


def _own(module: nn.Module) -> Iterator[bool]:
    """For each part: whether it is a packed linear layer. Parts of THEMSELVES are left out."""
    for child in module.children():
        if not isinstance(child, THEMSELVES):
            yield isinstance(child, PackedModule)
            yield from _own(child)
