"""The names that users see, and their parameters, are those of tests/public.txt.

A change of that file is a change of the promise: write down why in the commit.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

import hfaccel

LISTING = Path(__file__).with_name("public.txt")
MODULES = ("hfaccel.memory", "hfaccel.serve", "hfaccel.backends", "hfaccel.tune")
OF_MEMORY = ("coverage", "empty", "pack_", "release", "share")  # the others are for the house


def names():
    yield from ((f"hfaccel.{name}", getattr(hfaccel, name)) for name in hfaccel.__all__)
    for module in MODULES:
        home = importlib.import_module(module)
        for name in OF_MEMORY if module == "hfaccel.memory" else home.__all__:
            yield f"{module}.{name}", getattr(home, name)


def line(name, thing):
    if inspect.ismodule(thing):
        return name
    if isinstance(thing, type) and issubclass(thing, BaseException):
        return f"{name}(Exception)"
    return f"{name}{_parameters(thing)}" if callable(thing) else name


def _parameters(thing):
    """With their defaults, without types."""
    signature = inspect.signature(thing)
    plain = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


def test_public_names_and_parameters_are_as_listed():
    listed = LISTING.read_text().splitlines()
    assert sorted(line(*each) for each in names()) == listed


@pytest.mark.parametrize("name", [name for name in LISTING.read_text().split("\n") if "(" in name])
def test_every_public_function_says_what_it_does(name):
    path = name.partition("(")[0]
    home, _, attribute = path.rpartition(".")
    assert inspect.getdoc(getattr(importlib.import_module(home), attribute))
