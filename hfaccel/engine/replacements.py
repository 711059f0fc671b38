"""Modules that hfaccel replaces: what each kind of replacement can do, and the list of kinds.

A model plan (`engine.plan`) names a replacement for a module and its settings. To add a kind, subclass
ModuleReplacement in a file of its own and register it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

from hfaccel.replacement import Replacement

Settings = Mapping[str, Any]  # of one replacement, as JSON has them
Arguments = tuple[Any, ...]  # of a call
Keywords = dict[str, Any]
Find = Callable[[str], nn.Module]  # the module of the model that has this path
Paths = Mapping[nn.Module, str]  # of all modules of a model

C = TypeVar("C", bound="type[ModuleReplacement]")
REPLACEMENTS: dict[str, type[ModuleReplacement]] = {}


class ModuleReplacement(Replacement, nn.Module):
    """Mixed into a module's class. To undo one, see `hfaccel.replacement.undo`."""

    hfaccel_name: ClassVar[str] = ""  # in plans; "" for what another replacement brings along

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        """Replace the module. Raises ValueError where it is not as the settings say."""
        raise NotImplementedError

    def hfaccel_settings(self, paths: Paths) -> Settings:
        """With what `hfaccel_apply` makes the same of an equal module."""
        return {}

    def hfaccel_problem(self, paths: Paths) -> str:
        """Why it could not; "" where it can."""
        return ""


def register(cls: C) -> C:
    """Let plans name this replacement."""
    REPLACEMENTS[cls.hfaccel_name] = cls
    return cls
