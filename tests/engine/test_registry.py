"""A family from outside: its layers are fused, agree, and are found again in pickles."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from encoders import make, random_vectors
from torch import nn

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers import families
from hfaccel.engine.layers.call import Call
from hfaccel.engine.layers.families import FAMILIES, Family, base, family_of, register
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

SIZE, HEADS = 64, 4


# What the other package has


class Mixer(nn.Module):
    head_dim = SIZE // HEADS

    def __init__(self):
        super().__init__()
        self.ask, self.offer, self.hold = (nn.Linear(SIZE, SIZE) for _ in range(3))

    def forward(self, states, seen):
        query, key, value = (
            each(states).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for each in (self.ask, self.offer, self.hold)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return mixed.transpose(1, 2).flatten(2)


class Storey(nn.Module):
    """An encoder layer whose parts have names of their own, and that returns a pair."""

    def __init__(self):
        super().__init__()
        self.mixer, self.gather, self.calm = Mixer(), nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE)
        self.widen, self.bend, self.narrow = nn.Linear(SIZE, 128), nn.SiLU(), nn.Linear(128, SIZE)
        self.rest = nn.LayerNorm(SIZE)

    def forward(self, states, seen=None):
        states = self.calm(states + self.gather(self.mixer(states, seen)))
        return self.rest(states + self.narrow(self.bend(self.widen(states)))), None


class House(nn.Module):
    def __init__(self):
        super().__init__()
        self.storeys = nn.ModuleList(Storey() for _ in range(2))

    def forward(self, states, seen=None):
        for storey in self.storeys:
            states, _ = storey(states, seen)
        return states


class StoreyCall(Call):
    __slots__ = ()
    configured = False

    def give(self, result):
        return result, None


FAMILY = Family(
    name="House",
    attention="mixer",
    query="mixer.ask",
    key="mixer.offer",
    value="mixer.hold",
    attention_output="gather",
    attention_norm="calm",
    up="widen",
    activation="bend",
    down="narrow",
    output_norm="rest",
    call=StoreyCall,
)


# Here


@pytest.fixture(autouse=True)
def as_before():
    before = [*FAMILIES]
    base.load_others.cache_clear()
    yield
    FAMILIES[:] = before
    base.load_others.cache_clear()


def house():
    torch.manual_seed(0)
    return random_vectors(House())


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def check(fast, stock):
    states = torch.randn(2, 9, SIZE)
    seen = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    seen[1, ..., 6:] = False
    with torch.inference_mode():
        torch.testing.assert_close(fast(states), stock(states), rtol=0, atol=1e-5)
        torch.testing.assert_close(fast(states, seen)[0], stock(states, seen)[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(fast(states, seen)[1, :6], stock(states, seen)[1, :6], rtol=0, atol=1e-5)
    assert len(fused(fast)) == 2 and not hfaccel.report(fast).stock_calls


def test_layers_of_a_registered_family_are_fused_and_agree():
    assert not fused(hfaccel.optimize(house()))
    register(FAMILY)
    check(hfaccel.optimize(house()), house())


def test_the_trial_judges_a_family_from_outside_too():
    class Liar(StoreyCall):
        __slots__ = ()

        def give(self, result):
            return result * 1.01, None

    register(replace(FAMILY, call=Liar))
    fast = hfaccel.optimize(house())
    assert not fused(fast) and "a trial differed" in str(hfaccel.report(fast))


class Entry:
    name, value = "house", "houses:FAMILY"

    def load(self):
        return FAMILY


class Broken(Entry):
    def load(self):
        raise ImportError("no module named houses")


def found(*entries):
    return lambda group: entries if group == "hfaccel.families" else ()


def test_entry_points_are_found(monkeypatch):
    monkeypatch.setattr(base, "entry_points", found(Entry()))
    check(hfaccel.optimize(house()), house())
    assert family_of("House") is FAMILY


def test_an_entry_point_that_cannot_be_loaded_is_left_out_with_a_warning(monkeypatch):
    monkeypatch.setattr(base, "entry_points", found(Broken(), Entry()))
    with pytest.warns(RuntimeWarning, match=r"house \(houses:FAMILY\) raised ImportError.*stay as they are"):
        fast = hfaccel.optimize(house())
    check(fast, house())


def test_copies_and_pickles_are_of_the_same_family():
    register(FAMILY)
    fast = hfaccel.optimize(house())
    assert pickle.loads(pickle.dumps(FAMILY)) is FAMILY and copy.deepcopy(FAMILY) is FAMILY
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        check(other, house())
        assert fused(other)[0].hfaccel_family is FAMILY


def test_a_pickle_without_its_family_names_the_remedy():
    register(FAMILY)
    pickled = pickle.dumps(hfaccel.optimize(house()))
    FAMILIES.remove(FAMILY)
    with pytest.raises(ValueError, match=r"one of ALBERT, .* but got 'House': install or import the package"):
        pickle.loads(pickled)


def test_another_process_loads_a_pickle(tmp_path):
    fast = hfaccel.optimize(make("T5"))
    (tmp_path / "model").write_bytes(pickle.dumps(fast))
    code = f"import pickle; print(pickle.load(open({str(tmp_path / 'model')!r}, 'rb')).encoder.block[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("FusedT5Block")


def test_registering_again_replaces_in_place():
    first, last = FAMILIES[0], FAMILIES[-1]
    other = replace(first, call=StoreyCall)
    register(other)
    assert FAMILIES[0] is other and FAMILIES[-1] is last and family_of(first.name) is other


def test_the_order_is_that_of_files_and_of_rows():
    """It matters where families name the same parts: the first that agrees is taken."""
    assert [family.name for family in FAMILIES] == [
        own.name for file in families.OWN.values() for own in file
    ]
    assert [*families.OWN] == sorted(families.OWN)
    names = [family.name for family in FAMILIES]
    for one, *others in (("BERT", "LayoutLM", "LayoutLMv3", "eager BERT"), ("CLIP", "SigLIP")):
        for other in others:
            assert names.index(one) < names.index(other)
            one = other


def test_a_family_without_projections_is_refused():
    with pytest.raises(ValueError, match="must name query, key and value or qkv"):
        replace(family_of("BERT"), name="Wrong", query="")


def test_a_family_says_which_parts_a_layer_lacks():
    layer = make("BERT").encoder.layer[0]
    assert not [*family_of("BERT").missing(layer)]
    wrong = replace(family_of("BERT"), name="Wrong", output_norm="output.LayerNorn")
    assert [*wrong.missing(layer)] == ["output.LayerNorn"]
