"""hfaccel._snapshot: it says what its twin in Python says, takes nothing but tuples, and leaks nothing."""

from __future__ import annotations

import sys
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel import _snapshot
from hfaccel.engine.calls.snapshot import InPython, comparison


class Raises:
    @property
    def name(self):
        raise RuntimeError("of its own")


VALUES = [None, 0, 1, 1.5, "one", (), int, str]
NAMES = ["a", "b", "c"]
tables = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES))
rows = st.lists(st.tuples(tables, st.sampled_from(NAMES), st.sampled_from(VALUES)), max_size=8)


class Owner:
    def __init__(self, table):
        vars(self).update(table)


def columns(rows, width):
    return tuple(zip(*rows, strict=True)) if rows else ((),) * width


def test_the_extension_is_used():
    assert comparison is _snapshot


@given(rows)
def test_items(rows):
    given = columns(rows, 3)
    assert _snapshot.items_are(*given) is InPython.items_are(*given)
    held = columns([(table, name, table.get(name)) for table, name, _ in rows], 3)
    assert _snapshot.items_are(*held) is True


@given(rows)
def test_attributes(rows):
    given = columns([(Owner(table), name, value) for table, name, value in rows], 3)
    assert _snapshot.attributes_are(*given) is InPython.attributes_are(*given)
    held = columns([(Owner(table), name, table.get(name)) for table, name, _ in rows], 3)
    assert _snapshot.attributes_are(*held) is True


@given(st.lists(st.tuples(st.sampled_from(VALUES), st.sampled_from([int, str, type, float, tuple]))))
def test_types(rows):
    given = columns(rows, 2)
    assert _snapshot.types_are(*given) is InPython.types_are(*given)
    held = columns([(value, type(value)) for value, _ in rows], 2)
    assert _snapshot.types_are(*held) is True


@given(st.lists(st.tuples(tables | tables.map(OrderedDict), st.integers(0, 3))))
def test_sizes(rows):
    given = columns(rows, 2)
    assert _snapshot.sizes_are(*given) is InPython.sizes_are(*given)
    held = columns([(table, len(table)) for table, _ in rows], 2)
    assert _snapshot.sizes_are(*held) is True


REFUSED = [
    (_snapshot.items_are, ([{}], ["a"], [1]), TypeError),
    (_snapshot.items_are, (({},), ("a",)), TypeError),
    (_snapshot.items_are, (({},), ("a",), ()), TypeError),
    (_snapshot.items_are, (([],), ("a",), (None,)), TypeError),
    (_snapshot.items_are, (({},), ([],), (None,)), TypeError),  # no key of a dict
    (_snapshot.attributes_are, (({},), (1,), (None,)), TypeError),
    (_snapshot.attributes_are, ((Raises(),), ("name",), (None,)), RuntimeError),
    (_snapshot.types_are, (), TypeError),
    (_snapshot.sizes_are, (([],), (0,)), TypeError),
    (_snapshot.sizes_are, (({},), ("0",)), TypeError),
    (_snapshot.sizes_are, (({},), (1 << 80,)), OverflowError),
]


@pytest.mark.parametrize(("function", "arguments", "error"), REFUSED)
def test_bad_arguments_are_errors(function, arguments, error):
    with pytest.raises(error):
        function(*arguments)


def leaks(call):
    """Blocks and references of None that 500 calls add; None is what nothing owns."""
    for _ in range(20):
        call()
    before, blocks = sys.getrefcount(None), sys.getallocatedblocks()
    for _ in range(500):
        call()
    return max(sys.getallocatedblocks() - blocks, sys.getrefcount(None) - before)


OBJECT = Owner({"a": VALUES})
LEAK_TESTS = {
    "items_are": lambda: _snapshot.items_are(({"a": VALUES}, {}), ("a", "b"), (VALUES, None)),
    "attributes_are": lambda: _snapshot.attributes_are((OBJECT, OBJECT), ("a", "b"), (VALUES, None)),
    "types_are": lambda: _snapshot.types_are((OBJECT,), (Owner,)),
    "sizes_are": lambda: _snapshot.sizes_are(({}, {"a": 1}), (0, 2)),
}


def test_every_function_has_a_leak_test():
    assert {name for name in vars(_snapshot) if not name.startswith("_")} == set(LEAK_TESTS)


@pytest.mark.parametrize("name", LEAK_TESTS)
def test_nothing_leaks(name):
    assert leaks(LEAK_TESTS[name]) < 200
    assert sys.getrefcount(VALUES) < 50


@pytest.mark.parametrize(("function", "arguments", "error"), REFUSED)
def test_errors_leak_nothing(function, arguments, error):
    def call():
        try:
            function(*arguments)
        except error:
            return

    assert leaks(call) < 200
