"""Models that torch.compile leaves as they are, because packed linear layers are all over their forwards.

A packed layer is no part of a graph of torch. A decoder would be cut into hundreds of graphs, and entering
them costs more than is gained by the few operations between two layers. A compiled model of that kind calls
its own forward, in one piece.
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
from hfaccel.engine.replacements import Arguments, Find, Keywords, ModuleReplacement, Settings, register
from hfaccel.engine.weights.linear import PackedModule
from hfaccel.replacement import replace

THEMSELVES = (FusedLayer, FusedStack, FusedEmbeddings, PaddedModel)  # look after torch.compile


@register
class OutsideModel(ModuleReplacement):
    """A model of that kind."""

    hfaccel_name = "outside"
    hfaccel_signatures = ("forward",)

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        replace(module, cls)

    def forward(self, *args: object, **kwargs: object) -> object:
        if torch.compiler.is_dynamo_compiling() and not self.training:
            return outside_of_graphs(self, args, kwargs)
        return super().forward(*args, **kwargs)


@outside_graphs
def outside_of_graphs(model: nn.Module, args: Arguments, kwargs: Keywords) -> object:
    """The whole call: what torch.compile makes of the few operations around packed layers takes longer."""
    return type(model).forward(model, *args, **kwargs)


def find_outside(model: nn.Module) -> list[Step]:
    """The models in this one whose own layers are packed."""
    return [
        Step(path, "outside")
        for path, module in model.named_modules()
        if hasattr(module, "save_pretrained")
        and not isinstance(module, ModuleReplacement)
        and any(_own(module))
    ]


def _own(module: nn.Module) -> Iterator[bool]:
    """Whether each part is packed, but those of fused layers and of models that look after themselves."""
    for child in module.children():
        if not isinstance(child, THEMSELVES):
            yield isinstance(child, PackedModule)
            yield from _own(child)
