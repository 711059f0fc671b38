"""Families of encoder layers, one file for each naming scheme of their parts. This is the manual for
adding one.

A layer is recognised by its parts, not by its class or version. Before the layer is fused, a test on random
input against the layer's own forward confirms that the layer computes what the family claims
(`hfaccel.engine.layers.trial`). So several families may name the same parts and compute different things with
them; the first that passes is taken, in the order of the files' names and, within a file, of its FAMILIES.

To add a family, add a file here whose FAMILIES names the paths of the parts (the fields of `Parts`). If the
layer has unusual arguments or results, the file also defines a subclass of Call with a `sample` for the
trial. Another package calls `register(family)`, or has an entry point of the group `hfaccel.families` for its
Family: a fused model can then be loaded wherever that package is installed.
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
