"""Whether the code that a trial ran is still there.

Programs replace functions of classes (`BertSelfAttention.forward = mine`), of modules
(`torch.nn.functional.scaled_dot_product_attention = mine`) and in transformers' tables of attention
functions. The kernels call none of these functions, so each call compares them with those of the trial. Which
functions a forward may call is read from the names in its code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

from torch import nn

from hfaccel.engine.calls.snapshot import Held, Table, columns, comparison
from hfaccel.replacement import original
from hfaccel.upstream.of_experts import GATE
from hfaccel.upstream.of_torch import CALL
from hfaccel.upstream.of_transformers import INTERFACE

ENTRIES = ("__call__", CALL, "forward")
CALLED_ELSEWHERE = (GATE,)  # methods that functions of transformers' tables call
IMPLEMENTATION = "sdpa"  # the attention of layers that are fused
WATCHED = ("torch", "transformers")  # packages whose modules are searched
KINDS = (FunctionType, BuiltinFunctionType, type)  # other callables may be models, which must not stay alive


class Code:
    """The functions that the forwards of some classes may call, as found when this object was made.

    A copied or unpickled model gets the functions that its process trusts.
    """

    def __init__(self, classes: frozenset[type[nn.Module]]) -> None:
        self.classes = classes
        reached = _Reached(classes)
        self._attributes = columns(reached.of_classes.values())
        self._items = columns(reached.of_tables.values())

    def holds(self) -> bool:
        """Whether all functions are still the same."""
        return comparison.attributes_are(*self._attributes) and comparison.items_are(*self._items)

    def problem(self) -> str:
        """Which function was replaced; "" for none."""
        for owner, name, function in zip(*self._attributes, strict=True):
            if getattr(owner, name, None) is not function:
                return f"{owner.__name__}.{name} was replaced"
        for table, name, value in zip(*self._items, strict=True):
            if table.get(name) is not value:
                return f"{table.get('__name__', 'the attention function')}.{name} was replaced"
        return ""

    def __reduce__(self) -> tuple[object, ...]:
        return code_of, (self.classes,)


_known: dict[frozenset[type[nn.Module]], Code] = {}


def trusted(modules: Iterable[nn.Module]) -> Code:
    """The code of these modules' classes at the last successful trial, or else at the first request."""
    return code_of(map(stock_class, modules))


def current(modules: Iterable[nn.Module]) -> Code:
    """The code of these modules' classes as it is now."""
    return Code(frozenset(map(stock_class, modules)))


def trust(modules: Iterable[nn.Module]) -> Code:
    """Trust the present code from now on. Returns the code trusted before, for `trust_again`."""
    modules = list(modules)
    before = trusted(modules)
    if not before.holds():
        trust_again(current(modules))
    return before


def trust_again(code: Code) -> None:
    _known[code.classes] = code


def stock_class(module: nn.Module) -> type[nn.Module]:
    """The module's class as it was before hfaccel."""
    return original(type(module))


def code_of(classes: Iterable[type[nn.Module]]) -> Code:
    """The same as `trusted`, for classes."""
    classes = frozenset(classes)
    code = _known.get(classes)
    return _known.setdefault(classes, Code(classes)) if code is None else code


class _Reached:
    """The functions that the forwards of these classes call by name."""

    def __init__(self, classes: Iterable[type[nn.Module]]) -> None:
        self.of_classes: dict[tuple[int, str], tuple[type, str, object]] = {}
        self.of_tables: dict[tuple[int, str], Held] = {}
        self.seen: set[tuple[int, FunctionType]] = set()
        for cls in classes:
            for name in (*ENTRIES, *filter(partial(hasattr, cls), CALLED_ELSEWHERE)):
                self._of_class(cls, name, getattr(cls, name))

    def _of_class(self, cls: type, name: str, function: object) -> None:
        self.of_classes[id(cls), name] = cls, name, function
        if function is not getattr(nn.Module, name, None):
            self._follow(function, cls)

    def _of_table(self, table: Table, name: str, value: object, cls: type) -> None:
        self.of_tables[id(table), name] = table, name, value
        if not _is_torchs(value):
            self._follow(value, cls)

    def _follow(self, function: object, cls: type) -> None:
        if not isinstance(function, FunctionType) or (id(cls), function) in self.seen:
            return
        self.seen.add((id(cls), function))
        for inner in _enclosed(function):  # a decorator keeps the decorated function in its closure
            self._follow(inner, cls)
        names = set(_names(function.__code__))
        for name in names:
            method = getattr(cls, name, None)
            if isinstance(method, FunctionType) and not hasattr(nn.Module, name):
                self._of_class(cls, name, method)
        self._globals(function.__globals__, names, cls)

    def _globals(self, table: Table, names: set[str], cls: type) -> None:
        for name in names & table.keys():
            value = table[name]
            if isinstance(value, ModuleType):
                self._module(value, names, cls)
            elif isinstance(value, KINDS):
                self._of_table(table, name, value, cls)
            elif all(hasattr(value, mapping) for mapping in INTERFACE):
                self._interface(table, name, cls)

    def _module(self, module: ModuleType, names: set[str], cls: type) -> None:
        if module.__name__.partition(".")[0] not in WATCHED:
            return
        for name in names & vars(module).keys():
            value = vars(module)[name]
            if isinstance(value, ModuleType):
                self._module(value, names - {name}, cls)
            elif isinstance(value, KINDS):
                self._of_table(vars(module), name, value, cls)

    def _interface(self, table: Table, name: str, cls: type) -> None:
        interface = table[name]
        self.of_tables[id(table), name] = table, name, interface
        for mapping in INTERFACE:
            functions = getattr(interface, mapping)
            self._of_table(functions, IMPLEMENTATION, functions.get(IMPLEMENTATION), cls)


def _is_torchs(value: object) -> bool:
    return (getattr(value, "__module__", None) or "").partition(".")[0] == "torch"


def _enclosed(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # the cell is still empty
            continue


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
