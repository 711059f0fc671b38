"""One way to put a class of hfaccel in front of an object's own class, and to take it away again.

The object stays what it was: it keeps its attributes, and is an instance of its former class. Only methods
change. Copies and pickles of the object are replaced as the object is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, TypeVar

T = TypeVar("T")

PREFIX = "_hfaccel_"  # of all attributes that replacements give to an object

_classes: dict[tuple[type, type, Hashable], type] = {}


class Replacement:
    """Mixed into an object's class by `replace`."""

    hfaccel_original: ClassVar[type[Any]]  # the class of the object before
    hfaccel_key: ClassVar[Any] = None  # what the replacement works with; one class for each
    # What the class is called: this and the original's name. "" where the name is seen outside.
    hfaccel_prefix: ClassVar[str] = ""
    # Methods of which somebody asks for the parameters: they show the original's.
    hfaccel_signatures: ClassVar[tuple[str, ...]] = ()
    # Attributes of this object alone, which a copy or pickle is not given.
    hfaccel_own: ClassVar[tuple[str, ...]] = ()

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        cls = type(self)
        return (
            _new,
            (cls.__bases__[0], cls.hfaccel_original, vars(cls).get("hfaccel_key")),
            self.__getstate__(),
        )

    def __getstate__(self) -> dict[str, object]:
        state: Any = super().__getstate__()
        return {name: value for name, value in state.items() if name not in self.hfaccel_own}

    def hfaccel_forget_places(self) -> None:
        """The object's tensors have moved: drop what was noted of where they lay."""


def replace(target: object, mixin: type[Replacement], key: Hashable = None) -> None:
    """Put `mixin` in front of the object's class: the same class for the same arguments."""
    target.__class__ = _class(mixin, type(target), key)


def undo(target: object) -> None:
    """Undo every `replace`, and forget what replacements have noted on the object."""
    target.__class__ = original(type(target))
    for name in [name for name in vars(target) if name.startswith(PREFIX)]:
        del target.__dict__[name]


def undo_outermost(target: Replacement) -> None:
    """Undo the last `replace`; what was noted stays."""
    target.__class__ = target.hfaccel_original


def original(cls: type) -> type:
    """The class as it was before all replacements."""
    while "hfaccel_original" in cls.__dict__:
        cls = cls.__dict__["hfaccel_original"]
    return cls


class Shadow:
    """Mixed into a module's class by `shadow`. The shadow and the module have one __dict__: what a method
    writes to `self` is written to the module. Stand-ins lie beside it, in a slot."""

    __slots__ = ("hfaccel_stand_ins",)
    hfaccel_stand_ins: dict[str, object]

    def __getattr__(self, name: str) -> object:  # children are found here: they are no ordinary attributes
        stand_ins = self.hfaccel_stand_ins
        return stand_ins[name] if name in stand_ins else super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: object) -> None:
        self.hfaccel_stand_ins.pop(name, None)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self.hfaccel_stand_ins.pop(name, None)
        super().__delattr__(name)


def shadow(target: T, stand_ins: Mapping[str, object]) -> T:
    """The module with others in the place of its children of these names. All else is the module's own."""
    cls: type = type(target)
    result: T = object.__new__(_shadow_class(cls))
    object.__setattr__(result, "hfaccel_stand_ins", dict(stand_ins))
    object.__setattr__(result, "__dict__", vars(target))
    return result


@functools.cache
def _shadow_class(cls: type) -> type:
    members = {"__slots__": (), "__module__": cls.__module__, "__doc__": cls.__doc__, "hfaccel_original": cls}
    return type(cls.__name__, (Shadow, cls), members)


def _class(mixin: type[Replacement], stock: type, key: Hashable) -> type:
    if (mixin, stock, key) not in _classes:
        members: dict[str, object] = {"hfaccel_original": stock, "__doc__": stock.__doc__}
        if key is not None:  # or another replacement's would be hidden
            members["hfaccel_key"] = key
        if mixin.hfaccel_prefix:
            members["__module__"] = mixin.__module__
        else:
            members |= {"__module__": stock.__module__, "__qualname__": stock.__qualname__}
        for name in mixin.hfaccel_signatures:
            members[name] = _with_signature(getattr(mixin, name), getattr(stock, name))
        _classes[mixin, stock, key] = type(mixin.hfaccel_prefix + stock.__name__, (mixin, stock), members)
    return _classes[mixin, stock, key]


def _with_signature(method: Callable[..., object], stock: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(stock)
    def same(self: object, *args: object, **kwargs: object) -> object:
        return method(self, *args, **kwargs)

    return same


def _new(mixin: type[Replacement], stock: type, key: Hashable) -> object:
    """For pickle and deepcopy: an empty object, filled by __setstate__."""
    cls = _class(mixin, stock, key)
    return object.__new__(cls)
