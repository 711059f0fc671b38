"""after_import: an action when a module is imported, and an import that nobody can tell from another."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import sys
import types
import zipfile

import pytest
from conftest import at_once

from hfaccel.apply.hooks import after_import


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Write modules into a folder on the path: modules(name="source"), or {"package/module": "source"}."""
    monkeypatch.setattr(sys, "meta_path", sys.meta_path[:])
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def write(files=None, **sources):
        for name, source in {**sources, **(files or {})}.items():
            path = tmp_path / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.fixture
def log():
    return []


def test_the_action_runs_once_when_the_module_is_complete(modules, log):
    modules(waited="late = 1")
    after_import("waited", lambda: log.append(sys.modules["waited"].late))
    assert log == [] and "waited" not in sys.modules
    import waited  # noqa: F401

    assert log == [1]
    importlib.import_module("waited")
    importlib.reload(sys.modules["waited"])
    assert log == [1]


def test_a_module_that_is_imported_already_is_not_waited_for(modules, log):
    finders = sys.meta_path[:]
    after_import("json", lambda: log.append(1))
    assert log == [1]
    assert sys.meta_path == finders


def test_actions_run_in_the_order_in_which_they_were_given(modules, log):
    modules(waited="")
    for number in range(4):
        after_import("waited", lambda number=number: log.append(number))
    importlib.import_module("waited")
    assert log == [0, 1, 2, 3]


def test_all_modules_are_waited_for_by_one_finder(modules, log):
    modules(one="", two="")
    finders = len(sys.meta_path)
    after_import("one", lambda: log.append("one"))
    after_import("two", lambda: log.append("two"))
    assert len(sys.meta_path) == finders + 1
    importlib.import_module("two")
    importlib.import_module("one")
    assert log == ["two", "one"]


def test_other_modules_are_nobodys_business(modules, log):
    modules({"package/__init__": "", "package/waited": ""}, waited="", waited2="")
    after_import("waited", lambda: log.append(1))
    importlib.import_module("waited2")
    importlib.import_module("package.waited")
    assert log == []


def test_an_action_may_import_the_module_and_wait_for_others(modules, log):
    modules(one="x = 1", two="")

    def action():
        import one

        log.append(one.x)
        after_import("one", lambda: log.append("at once"))
        after_import("two", lambda: log.append("two"))

    after_import("one", action)
    importlib.import_module("one")
    assert log == [1, "at once"]
    importlib.import_module("two")
    assert log == [1, "at once", "two"]


def test_an_import_that_fails_is_waited_for_again(modules, log):
    modules(waited="raise RuntimeError('not today')")
    after_import("waited", lambda: log.append(1))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="not today"):
            importlib.import_module("waited")
    assert log == [] and "waited" not in sys.modules
    modules(waited="# this time it works, and the file has another size")
    importlib.import_module("waited")
    assert log == [1]


def test_a_module_that_does_not_exist_is_as_missing_as_ever(modules, log):
    after_import("no_such_module", lambda: log.append(1))
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("no_such_module")
    assert raised.value.name == "no_such_module"
    assert importlib.util.find_spec("no_such_module") is None
    assert log == []


def test_looking_for_a_module_is_not_importing_it(modules, log):
    modules(waited="")
    after_import("waited", lambda: log.append(1))
    assert importlib.util.find_spec("waited").origin.endswith("waited.py")
    assert log == [] and "waited" not in sys.modules
    importlib.import_module("waited")
    assert log == [1]


def test_looking_for_a_module_in_an_archive_leaves_its_neighbours_alone(modules, log, tmp_path, monkeypatch):
    """All modules of a zip file have one loader."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("zipped.py", "")
        archive.writestr("neighbour.py", "")
    monkeypatch.syspath_prepend(str(tmp_path / "a.zip"))
    after_import("zipped", lambda: log.append("zipped" in sys.modules))
    assert importlib.util.find_spec("zipped") is not None
    importlib.import_module("neighbour")
    assert log == []
    importlib.import_module("zipped")
    assert log == [True]


# The module is what it would be without us


def test_module_and_loader_are_as_without_us(modules, log):
    source = "def function():\n    return 1\n"
    modules(waited=source, plain=source)
    after_import("waited", lambda: log.append(1))
    waited, plain = map(importlib.import_module, ("waited", "plain"))
    assert type(waited.__loader__) is type(plain.__loader__)
    assert waited.__spec__.loader is waited.__loader__
    assert vars(waited.__loader__).keys() == vars(plain.__loader__).keys()
    assert vars(waited).keys() == vars(plain).keys()
    assert inspect.getsource(waited.function) == source
    assert inspect.getsource(waited) == waited.__loader__.get_source("waited") == source
    assert waited.__cached__ and importlib.util.find_spec("waited").origin == waited.__file__


def test_a_package_has_its_modules_and_files(modules, log):
    modules({"package/__init__": "from package import part", "package/part": "x = 1"})
    after_import("package", lambda: log.append("package"))
    after_import("package.part", lambda: log.append("part"))
    import package

    assert log == ["part", "package"]  # the inner one is complete first
    assert package.part.x == 1
    from importlib import resources

    assert resources.files("package").joinpath("part.py").read_text() == "x = 1"


def test_a_namespace_package_can_be_imported(modules, log):
    modules({"space/part": "x = 1"})
    after_import("space", lambda: None)
    after_import("space.part", lambda: log.append(1))
    import space.part

    assert log == [1]
    assert space.__file__ is None and space.part.x == 1


def test_a_module_of_the_interpreter_can_be_waited_for(modules, log, monkeypatch):
    monkeypatch.delitem(sys.modules, "_queue", raising=False)
    monkeypatch.delitem(sys.modules, "this_is_not_there", raising=False)
    after_import("_queue", lambda: log.append(1))
    importlib.import_module("_queue")
    assert log == [1]


def test_imports_within_imports(modules, log):
    modules(outer="import middle\nx = middle.x", middle="import inner\nx = inner.x", inner="x = 1")
    for name in ("outer", "middle", "inner"):
        after_import(name, lambda name=name: log.append((name, sys.modules[name].x)))
    importlib.import_module("outer")
    assert log == [("inner", 1), ("middle", 1), ("outer", 1)]


def test_a_circle_of_imports_acts_on_each_when_it_is_complete(modules, log):
    modules(left="import right\nx = 1", right="import left\nx = 2")
    for name in ("left", "right"):
        after_import(name, lambda name=name: log.append((name, sys.modules[name].x)))
    importlib.import_module("left")
    assert log == [("right", 2), ("left", 1)]


def test_a_module_that_is_being_imported_is_waited_for(modules, log, monkeypatch):
    """It is in sys.modules, but not complete."""
    monkeypatch.setattr(sys, "wait_for_it", lambda: after_import("half", act), raising=False)

    def act():
        log.append(getattr(sys.modules["half"], "late", "not complete"))

    modules(half="import sys\nsys.wait_for_it()\nlate = 1")
    importlib.import_module("half")
    assert "not complete" not in log


def test_threads_that_import_at_once_all_see_the_action_done(modules, log):
    modules(waited="import time\ntime.sleep(0.05)\nx = 1")
    after_import("waited", lambda: log.append(1))

    def work(_):
        import waited

        return waited.x, list(log)

    assert at_once(8, work) == [(1, [1])] * 8


# Loaders of all kinds


class Frozen:
    """A loader whose attributes cannot be set, as compiled ones are."""

    __slots__ = ()

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        module.x = 1


class Old:
    """A loader from before Python 3.4."""

    def load_module(self, name):
        module = sys.modules[name] = types.ModuleType(name)
        module.x = 1
        return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("loader", [Frozen, Old])
def test_a_loader_that_cannot_be_waited_for_loads_all_the_same(modules, loader):
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            return importlib.machinery.ModuleSpec(name, loader()) if name == "odd" else None

    sys.meta_path.append(Finder())
    after_import("odd", lambda: None)
    assert importlib.import_module("odd").x == 1


def test_a_finder_without_find_spec_is_passed_over(modules, log):
    modules(waited="")
    sys.meta_path.insert(0, object())  # Python itself passes over it, too
    after_import("waited", lambda: log.append(1))
    importlib.import_module("waited")
    assert log == [1]


def test_the_finder_of_another_is_asked_with_all_it_may_need(modules):
    asked = []

    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            asked.append((name, list(path or ())))

    modules({"package/__init__": "", "package/part": ""})
    sys.meta_path.insert(0, Finder())
    after_import("package.part", lambda: None)
    path = importlib.import_module("package").__path__
    asked.clear()
    importlib.import_module("package.part")
    assert asked == [("package.part", list(path))]
