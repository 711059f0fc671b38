"""The rules of the house, as data, checked against the import statements of every module.

Imports go down only; modules on one floor do not import each other, except within a package. No modules
import each other in a circle, and some packages have floors inside. The code that runs before a program
starts imports neither torch nor transformers.
"""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from hfaccel.upstream import of_torch

PACKAGE = "hfaccel"
ROOT = Path(__file__).parent.parent / PACKAGE

# From the roof to the ground. A new module or package is added to one of these floors.
FLOORS = (
    ("commands", "_site"),  # _site starts the user's own program
    ("tune", "doctor", "monitor"),
    ("bench",),
    ("auto", "saving"),
    ("optimization", "comparison", "launcher", "serve"),
    ("reporting",),
    ("configuration", "information", "pipelines"),
    ("generation",),
    ("selection",),
    ("backends",),
    ("export",),
    ("engine",),
    ("memory", "apply"),
    ("plan",),
    ("host", "cache", "precision"),
    ("upstream",),
    ("errors", "outcome", "native", "tables", "threads", "portable", "generators", "replacement", "writing"),
    ("_arena", "_snapshot"),  # extensions; those of the kernels are loaded by name (native.py)
)
FLOOR = {unit: number for number, floor in enumerate(FLOORS) for unit in floor}

# The floors inside a package, for those that have some.
INSIDE = {
    "engine": (
        ("transform",),
        ("kinds",),
        ("counting",),
        ("calibration", "models"),
        ("layers", "convolutions"),
        ("experts",),
        ("weights",),
        ("calls",),
        ("plan", "norms"),
        ("kernels", "replacements"),
    ),
}

# Each of these files stands alone: a backend may be taken out without touching the others.
BACKENDS = f"{PACKAGE}.backends"
SHARED_BY_BACKENDS = (BACKENDS, f"{BACKENDS}.base")

HEAVY = ("torch", "transformers")
LIGHT = ("host", "plan", "apply.environ", "apply.preload", "launcher", "commands", "serve")


# Reading imports


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(node, module, is_package):
    """Dotted names of one import statement; `from a import b` gives a.b, which may be no module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = module.split(".") if is_package else module.split(".")[:-1]
    base = package[: len(package) - node.level + 1] if node.level else []
    prefix = ".".join([*base, *filter(None, [node.module])])
    return [f"{prefix}.{alias.name}" for alias in node.names]


def import_nodes(node, everywhere):
    """Import statements below `node`; without `everywhere` only those that run when it is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif everywhere:
            yield from import_nodes(child, True)
        elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for statement in child.orelse:
                yield from import_nodes(ast.Module([statement], []), False)
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from import_nodes(child, False)


def imports(source, module, is_package=False, everywhere=True):
    nodes = import_nodes(ast.parse(source), everywhere)
    return {name for node in nodes for name in imported_names(node, module, is_package)}


PATHS = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def read(module, everywhere):
    path = PATHS[module]
    return imports(path.read_text(encoding="utf-8"), module, path.stem == "__init__", everywhere)


# Rules


def unit(name):
    """The module or package of the house that a dotted name is in; "" for hfaccel itself."""
    return ".".join(name.split(".")[1:2])


def own(names):
    return {name for name in names if name.split(".")[0] == PACKAGE}


def upward(module, names):
    """Imports of `module` that do not go down, nor stay within its package."""
    here = FLOOR[unit(module)]
    others = {name for name in own(names) if unit(name) != unit(module)}
    return sorted(name for name in others if FLOOR.get(unit(name), -1) <= here)


def upward_inside(module, names):
    """Imports of `module` that do not go down within its package, nor stay within a package of that one."""
    package = unit(module)
    floor = {part: number for number, floor in enumerate(INSIDE.get(package, ())) for part in floor}
    here = part_of(module)
    if not floor or not here:  # the package itself gives out the names of all its parts
        return []
    others = {name for name in own(names) if unit(name) == package and part_of(name) != here}
    return sorted(name for name in others if floor.get(part_of(name), -1) <= floor[here])


def part_of(name):
    """The module or package in a package of the house that a dotted name is in; "" for the package itself."""
    return ".".join(name.split(".")[2:3])


def between_backends(module, names):
    """Imports of one backend by another."""
    if not module.startswith(f"{BACKENDS}.") or module in SHARED_BY_BACKENDS:
        return []
    inside = {name for name in names if name.startswith(f"{BACKENDS}.")}
    return sorted(name for name in inside if ".".join(name.split(".")[:3]) not in SHARED_BY_BACKENDS)


def imported_modules(module):
    """Modules of hfaccel that the module names, anywhere in it, but itself."""
    names = own(read(module, everywhere=True))
    return {name if name in PATHS else name.rpartition(".")[0] for name in names} - {module}


def executed(name):
    """Modules of hfaccel whose code runs for `import name`: itself and the packages around it."""
    parts = name.split(".")
    prefixes = (".".join(parts[:count]) for count in range(1, len(parts) + 1))
    return {prefix for prefix in prefixes if prefix in PATHS}


def heavy_imports(module, seen=None):
    """`module: name` for every heavy import that runs when `module` is imported."""
    seen = set() if seen is None else seen
    found = set()
    for current in executed(module) - seen:
        seen.add(current)
        for name in read(current, everywhere=False):
            if name.split(".")[0] in HEAVY:
                found.add(f"{current}: {name}")
            elif name.split(".")[0] == PACKAGE:
                found |= heavy_imports(name, seen)
    return found


def is_light(module):
    return any(f"{module}.".startswith(f"{PACKAGE}.{light}.") for light in LIGHT)


# The house


def test_every_module_has_a_floor():
    assert {unit(module) for module in PATHS} - set(FLOOR) == {""}


def test_no_module_is_on_two_floors():
    assert len(FLOOR) == sum(map(len, FLOORS))


@pytest.mark.parametrize("module", [module for module in PATHS if unit(module)])
def test_imports_go_down(module):
    assert upward(module, read(module, everywhere=True)) == []


@pytest.mark.parametrize("package", INSIDE)
def test_every_part_of_a_package_with_floors_has_one(package):
    parts = [part for floor in INSIDE[package] for part in floor]
    assert sorted(parts) == sorted({part_of(module) for module in PATHS if unit(module) == package} - {""})


@pytest.mark.parametrize("module", [module for module in PATHS if unit(module) in INSIDE])
def test_imports_go_down_inside_a_package(module):
    assert upward_inside(module, read(module, everywhere=True)) == []


def test_modules_import_each_other_in_no_circle():
    """Neither in functions nor for type checking. Raises CycleError, which shows the circle."""
    TopologicalSorter({module: imported_modules(module) for module in PATHS}).prepare()


@pytest.mark.parametrize("module", PATHS)
def test_backends_do_not_know_each_other(module):
    assert between_backends(module, read(module, everywhere=True)) == []


@pytest.mark.parametrize("module", [PACKAGE, *filter(is_light, PATHS)])
def test_what_starts_a_program_imports_nothing_heavy(module):
    assert heavy_imports(module) == set()


def test_the_package_itself_imports_nothing_of_its_own():
    assert own(read(PACKAGE, everywhere=False)) == set()


@pytest.mark.parametrize("light", LIGHT)
def test_every_light_part_exists(light):
    # A renamed module would otherwise leave its rule without anything to check.
    assert f"{PACKAGE}.{light}" in PATHS


# The checks themselves: they must find what they look for


SOURCE = """
import a, b.c
from d import e as f
from . import g
from .h import i
from .. import j
if TYPE_CHECKING:
    import types
else:
    import k
try:
    import l
except ImportError:
    import m
class C:
    import n
def function():
    import o
    class Inside:
        async def method(self):
            import p
"""
AT_IMPORT = {"a", "b.c", "d.e", "x.y.g", "x.y.h.i", "x.j", "k", "l", "m", "n"}


def test_imports_are_found():
    assert imports(SOURCE, "x.y.z", everywhere=False) == AT_IMPORT
    assert imports(SOURCE, "x.y", is_package=True, everywhere=False) == AT_IMPORT
    assert imports(SOURCE, "x.y.z") == AT_IMPORT | {"types", "o", "p"}


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [
        ("hfaccel.plan.make", "hfaccel.host.HostFacts", True),
        ("hfaccel.plan.make", "hfaccel.plan.choice.Goal", True),
        ("hfaccel.plan.make", "json", True),
        ("hfaccel.host.cpu", "hfaccel.plan.make_plan", False),
        ("hfaccel.memory.arena", "hfaccel.apply.verify", False),
        ("hfaccel.launcher", "hfaccel.optimization", False),
        ("hfaccel.optimization", "hfaccel.configuration.configure", True),
        ("hfaccel.native", "hfaccel._arena", True),
        ("hfaccel.native", "hfaccel.errors", False),
        ("hfaccel.host.cpu", "hfaccel", False),  # the package itself stands above all
        ("hfaccel.host.cpu", "hfaccel.not_placed", False),
    ],
)
def test_upward_imports_are_found(module, name, allowed):
    assert upward(module, {name}) == ([] if allowed else [name])


@pytest.mark.parametrize(
    ("module", "name", "allowed"),
    [
        ("hfaccel.engine.weights.packed", "hfaccel.engine.kernels.Kind", True),
        ("hfaccel.engine.weights.packed", "hfaccel.engine.weights.exchange", True),
        ("hfaccel.engine.weights.packed", "hfaccel.memory.Arena", True),
        ("hfaccel.engine.weights.packed", "hfaccel.engine.layers.layer", False),
        ("hfaccel.engine.models.padding", "hfaccel.engine.calibration.speedups", False),
        ("hfaccel.engine.kernels", "hfaccel.engine", False),  # it stands above its parts
        ("hfaccel.engine.kernels", "hfaccel.engine.not_placed", False),
        ("hfaccel.engine", "hfaccel.engine.transform.transform", True),
        ("hfaccel.pipelines.wrap", "hfaccel.pipelines.run", True),  # no floors there
    ],
)
def test_upward_imports_inside_a_package_are_found(module, name, allowed):
    assert upward_inside(module, {name}) == ([] if allowed else [name])


def test_imports_between_backends_are_found():
    names = {"hfaccel.backends.base.Backend", "hfaccel.backends.eager.EagerBackend", "hfaccel.engine"}
    assert between_backends("hfaccel.backends.engine", names) == ["hfaccel.backends.eager.EagerBackend"]
    assert between_backends("hfaccel.backends", names) == []
    assert between_backends("hfaccel.optimization", names) == []


def test_heavy_imports_are_found_through_other_modules():
    assert "hfaccel.memory.arena: torch" in heavy_imports("hfaccel.memory")
    assert "hfaccel.memory.arena: torch" in heavy_imports("hfaccel.engine.weights.linear")
    assert heavy_imports("hfaccel.apply.process") == set()  # imports torch inside a function


# Private names of other packages stand in hfaccel.upstream, where each has a probe. Spelled elsewhere are:

SPELLED = {
    *of_torch.TABLES,
    *of_torch.OF_TENSORS,
    *of_torch.OVERRIDDEN,
    *("_asdict", "_replace"),  # public of named tuples
    *("_getframe", "_actions", "_ArgumentGroup", "_initializing"),  # Python's own
    "torch._inductor.config",  # of which torch's documentation tells
    "_hf_hook",  # accelerate's, looked for by name; without it there is none
}
LOOK_UPS = ("getattr", "hasattr", "setattr", "attrgetter")


def is_private(name):
    return name.startswith("_") and not name.startswith(("__", "_hfaccel"))


def private_names(tree):
    """Attributes, imported names and names in look-ups that begin with an underscore."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith(PACKAGE):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in LOOK_UPS:
            values = [each.value for each in node.args if isinstance(each, ast.Constant)]
            yield from (value for value in values if isinstance(value, str) and is_private(value))


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def own_names(tree):
    """What this file defines, or stores on `self` and `cls`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in PATHS.items()}
OWN = {name for tree in TREES.values() for name in own_names(tree)} - {"_version"}


@pytest.mark.parametrize("module", [module for module in PATHS if unit(module) != "upstream"])
def test_private_names_of_other_packages_stand_in_one_place(module):
    assert set(private_names(TREES[module])) - OWN - SPELLED == set()


def test_private_names_are_found():
    source = "a._b; from c._d import e; getattr(f, '_g'); h.__i__; from torch import j; k._hfaccel_l"
    assert set(private_names(ast.parse(source))) == {"_b", "c._d.e", "_g"}
