"""Families of encoder layers, one file for each naming scheme of their parts. This is the manual for
adding one.

A layer is recognised by its parts, not by its class or its version. That such a layer computes what the
family says is not believed but tested, on random input against the layer's own forward, before it is used
(`hfaccel.engine.layers.trial`). So families may name the same parts and differ in what is done with them;
the first that agrees is taken, in the order of the files' names and within a file in the order of its
FAMILIES.

To add a family, add a file here whose FAMILIES names the paths of the parts (the fields of `Parts`) and,
where the layer takes or gives something else than most, a subclass of Call with a `sample` for the trial.
Another package calls `register(family)`, or lets an entry point of the group `hfaccel.families` name its
Family: a fused model is then loaded wherever that package is installed.
"""

from __future__ import annotations

from importlib import import_module
from itertools import chain
from pkgutil import iter_modules

from hfaccel.engine.layers.families.base import (
    FAMILIES,
    Family,
    candidates,
    family_of,
    fusing_problem,
    register,
)

__all__ = ["FAMILIES", "OWN", "Family", "candidates", "family_of", "fusing_problem", "register"]

_files = sorted(found.name for found in iter_modules(__path__) if found.name != "base")
OWN: dict[str, tuple[Family, ...]] = {name: import_module(f"{__name__}.{name}").FAMILIES for name in _files}

for _family in chain.from_iterable(OWN.values()):
    register(_family)
