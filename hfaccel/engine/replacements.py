"""The protocol of replacements of modules, and the table of all replacements.

A model plan (`engine.plan`) names a replacement for a module and its settings. To add a kind, subclass
ModuleReplacement in a file of its own and register it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from torch import nn

from hfaccel.replacement import Replacement, replace

Settings = Mapping[str, Any]  # of one replacement; JSON can store them
Arguments = tuple[Any, ...]  # of a call
Keywords = dict[str, Any]
Find = Callable[[str], nn.Module]  # the module of the model that has this path
Paths = Mapping[nn.Module, str]  # of all modules of a model

C = TypeVar("C", bound="type[ModuleReplacement]")
REPLACEMENTS: dict[str, type[ModuleReplacement]] = {}


class ModuleReplacement(Replacement, nn.Module):
    """Mixed into a module's class. `hfaccel.replacement.undo` undoes it."""

    hfaccel_name: ClassVar[str] = ""  # in plans; "" for one that another replacement adds

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        """Replace the module. Raises ValueError if the module does not fit the settings."""
        replace(module, cls)

    def hfaccel_settings(self, paths: Paths) -> Settings:
        """The settings with which `hfaccel_apply` makes an equal module into the same replacement."""
        return {}

    def hfaccel_problem(self, paths: Paths) -> str:
        """Why `hfaccel_apply` could not do that; "" if it can."""
        return ""


def register(cls: C) -> C:
    """Let plans name this replacement."""
    REPLACEMENTS[cls.hfaccel_name] = cls
    return cls
