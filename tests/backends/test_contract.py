"""Every backend under the one contract; the registry; and a complete backend of a third party."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import needs_kernels, states
from contract import CONTRACT

import hfaccel
from hfaccel import backends
from hfaccel.backends import BACKENDS, Backend, Options, base, by_name, register
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    monkeypatch.setattr(backends, "BACKENDS", BACKENDS)
    before = list(BACKENDS)
    yield
    BACKENDS[:] = before


class HalvingBackend(Backend):
    """A third party's backend, whole: this is the example that docs/backends.md links to.

    It replaces nn.ReLU by nn.ReLU6 where that is the same (never true in general: do not use it).
    """

    name = "halving"

    def available(self):
        return ""

    def supports(self, model):
        return "" if any(type(module) is torch.nn.ReLU for module in model.modules()) else "no ReLU"

    def transform(self, model, options):
        changed = [module for module in model.modules() if type(module) is torch.nn.ReLU]
        for module in changed:
            module.__class__ = torch.nn.ReLU6
            module.min_val, module.max_val = 0.0, 6.0
        return (Outcome("ReLU", True, "replaced by ReLU6", len(changed)),) if changed else ()

    def restore(self, model):
        for module in model.modules():
            if type(module) is torch.nn.ReLU6:
                module.__class__ = torch.nn.ReLU


HOSTS = Path(__file__).parent.parent / "hosts"
ALL = "HFACCEL_TEST_BACKENDS"  # `make test-backends` sets it


def usable(backend):
    """The backend, or a skip with the reason why it cannot be tested here."""
    if problem := backend.available():
        pytest.skip(f"the backend {backend.name} is not available here: {problem}")
    if backend.name == "inductor" and not os.environ.get(ALL):
        pytest.skip("torch.compile takes minutes; `make test-backends` runs it")
    return backend


@pytest.mark.parametrize("rule", CONTRACT, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("backend", [*BACKENDS, HalvingBackend()], ids=lambda backend: backend.name)
def test_contract(backend, rule, batch):
    rule(usable(backend), batch)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime", "inductor", "ipex"])
def test_an_engine_that_is_there_is_used(name, bert, batch):
    backend = usable(by_name(name))
    outcomes = backend.transform(bert, Options())
    assert outcomes[0].applied and f"run by {name}, fp32" in outcomes[0].reason
    states(bert, batch)
    states(bert, {"input_ids": batch["input_ids"][:1, :1]})
    assert backend.stock_calls(bert) == {}


FORK = """
import os, sys
sys.path.insert(0, sys.argv[2])
import torch
from conftest import make_bert, states
from hfaccel.backends import Options, by_name

backend, model = by_name(sys.argv[1]), make_bert()
batch = {"input_ids": torch.randint(5, 1000, (3, 17))}
expected = states(model, batch)
torch.set_num_threads(1)  # OpenMP's own threads are not what is tested
assert backend.transform(model, Options())[0].applied
states(model, batch)
child = os.fork()
torch.testing.assert_close(states(model, batch), expected, rtol=0, atol=1e-5)
assert not backend.stock_calls(model)
if not child:
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_forked_process_has_a_session_of_its_own(name):
    """OpenVINO used to abort in the child, which ended its parent's session."""
    usable(by_name(name))
    command = [sys.executable, "-c", FORK, name, str(Path(__file__).parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


SMALL_DISK = """
import sys
sys.path.insert(0, sys.argv[2])
from conftest import make_bert
from hfaccel.backends import Options, by_name

for outcome in by_name(sys.argv[1]).transform(make_bert(), Options()):
    print(outcome.applied, outcome.reason)
"""


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_disk_that_is_too_small_costs_the_cache_alone(name, tmp_path):
    usable(by_name(name))
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is refused here: {done.stderr.strip()}")
    try:
        command = [sys.executable, "-c", SMALL_DISK, name, str(Path(__file__).parent.parent)]
        variables = {**os.environ, "HFACCEL_CACHE": str(tmp_path / "cache")}
        done = subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=240, check=False
        )
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert f"True run by {name}" in done.stdout, done.stdout + done.stderr
    assert "False not kept in" in done.stdout  # what it then says is the engine's


def test_register_adds_and_replaces():
    first, second = HalvingBackend(), HalvingBackend()
    register(first)
    register(second)
    assert [backend for backend in BACKENDS if backend.name == "halving"] == [second]
    assert by_name("halving") is second


def test_a_registered_backend_is_used_by_name():
    register(HalvingBackend())
    model = hfaccel.optimize(
        torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval(), backend="halving"
    )
    assert hfaccel.report(model).backend == "halving"
    assert type(model[1]) is torch.nn.ReLU6
    assert type(hfaccel.restore(model)[1]) is torch.nn.ReLU


def test_entry_points_are_found(monkeypatch):
    class Entry:
        name = "halving"

        def load(self):
            return HalvingBackend

    found = lambda group, name=None: [Entry()] if name in (None, "halving") else []  # noqa: E731
    monkeypatch.setattr(backends, "entry_points", found)
    assert isinstance(by_name("halving"), HalvingBackend)


def test_an_unknown_backend_names_the_known_ones():
    with pytest.raises(UsageError, match=r"must be auto or one of torch, .*, eager, but got 'nonsense'"):
        by_name("nonsense")


@needs_kernels
def test_only_what_needs_no_preparation_is_taken_unmeasured(bert):
    assert [backend.name for backend in BACKENDS if not backend.preparation] == ["torch", "eager"]
    assert hfaccel.report(hfaccel.optimize(bert)).backend == "torch"


@pytest.mark.parametrize(
    ("module", "name"),
    [("optimum.onnxruntime.modeling", "onnxruntime"), ("optimum.intel.openvino.modeling", "openvino")],
)
def test_models_of_optimum_are_accepted_as_they_are(module, name):
    """A stand-in: optimum's packages do not install beside transformers 5."""
    base = type("ModelBase", (), {"__module__": module})
    model = type("ModelForFeatureExtraction", (base,), {"__call__": lambda self: 7})()
    assert hfaccel.optimize(model) is model and model() == 7
    assert f"{name} runs it already" in hfaccel.report(model).outcomes[0].reason
    pipeline = type("Pipeline", (), {"model": model, "__call__": lambda self: 8})()
    assert hfaccel.optimize(pipeline) is pipeline
    assert hfaccel.restore(model) is model


def test_ipex_says_that_it_is_retired(bert):
    said = by_name("ipex").available()
    if not said:  # torch 2.8, and the extension beside it
        said = str(by_name("ipex").transform(bert, Options())[1])
        assert "2.8 was the last release" in said
    else:
        assert "retired" in said and "torch 2.8 alone" in said


def test_bfloat16_is_refused_where_it_would_be_emulated(monkeypatch):
    for name, refused in (("skylake-offline", True), ("zen4-vm", False), ("graviton3", False)):
        monkeypatch.setattr(base, "read_host", lambda name=name: read_host(HOSTS / f"{name}.txt"))
        assert bool(base.too_slow(Precision.BFLOAT16)) is refused and base.too_slow(Precision.FLOAT32) == ""
