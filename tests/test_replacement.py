"""Shadows: a module with other children, whose writes are the module's own."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from hfaccel.replacement import original, shadow


class Counting(nn.Module):
    """Writes to itself whatever a module can be given."""

    def __init__(self):
        super().__init__()
        self.child = nn.Identity()
        self.calls = 0
        self.passing = 1
        self.register_buffer("last", torch.zeros(1))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, value):
        self.calls += 1
        self.last = value + 1
        self.scale = nn.Parameter(torch.full((1,), 3.0))
        self.made = nn.Tanh()
        self.add_module("added", nn.Sigmoid())
        self.register_buffer("new", value)
        self.__dict__["direct"] = 5
        del self.passing
        return self.child(value)


def stand_in(value):
    return value * 10


def test_a_shadow_calls_the_stand_in_and_the_module_its_child():
    module = Counting()
    assert shadow(module, {"child": stand_in}).forward(torch.ones(1)) == 10
    assert module.child(torch.ones(1)) == 1 and isinstance(module.child, nn.Identity)


def test_no_write_to_self_is_lost():
    module, value = Counting(), torch.ones(1)
    shadow(module, {"child": stand_in}).forward(value)
    assert module.calls == 1 and module.direct == 5 and not hasattr(module, "passing")
    assert module.last == 2 and module.new is value and {"last", "new"} <= module._buffers.keys()
    assert module.scale == 3 and isinstance(module._parameters["scale"], nn.Parameter)
    assert isinstance(module.made, nn.Tanh) and isinstance(module.added, nn.Sigmoid)
    assert list(module._modules) == ["child", "made", "added"]


def test_what_others_write_meanwhile_is_read():
    module = Counting()
    other = shadow(module, {"child": stand_in})
    module.calls, module.child.mark = 7, "seen"
    assert other.calls == 7 and other.last is module.last and other.scale is module.scale


@pytest.mark.parametrize("change", ["set", "delete"])
def test_a_child_that_the_forward_replaces_is_no_longer_stood_in_for(change):
    module = Counting()
    other = shadow(module, {"child": stand_in})
    if change == "set":
        other.child = nn.Tanh()
        assert other.child is module.child and isinstance(module.child, nn.Tanh)
    else:
        del other.child
        assert not hasattr(module, "child") and not hasattr(other, "child")


def test_a_shadow_is_of_the_module_s_class():
    module = Counting()
    other = shadow(module, {})
    assert isinstance(other, Counting) and original(type(other)) is Counting
    assert type(other) is type(shadow(Counting(), {}))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        other.nothing  # noqa: B018


def test_a_shadow_that_goes_leaves_the_module_as_it_is():
    module = Counting()
    state = copy.copy(vars(module))
    other = shadow(module, {"child": stand_in})
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None and vars(module) == state


def test_a_module_that_goes_leaves_the_shadow_as_it_is():
    other = shadow(Counting(), {"child": stand_in})
    gc.collect()
    assert other.forward(torch.ones(1)) == 10 and other.calls == 1
