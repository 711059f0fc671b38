"""Models as what is tuned: how a setting is started, and that wrong results are no fast results."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from hfaccel.bench import side
from hfaccel.bench.setting import Setting
from hfaccel.bench.side import Ground
from hfaccel.bench.work import Shapes
from hfaccel.plan import Request
from hfaccel.plan.profile import read_profile
from hfaccel.tune.machines import ModelMachine, ModelRunner, arguments_of, profile_of
from hfaccel.tune.trials import TrialFailed

DEFAULT = Setting("torch", threads=2, allocator="mimalloc", huge_pages="auto")
BF16, ONNX = Setting("torch", "bf16", threads=2), Setting("onnxruntime", threads=2)


class WithoutProcesses(ModelMachine):
    """Sides leave `results` of their engine, or fail for the reason in there."""

    results = {}
    started = ()

    @contextmanager
    def _crew(self, setting, name):
        self.started = (*self.started, setting)
        result = self.results.get((setting.backend, setting.precision), np.ones(8))
        if isinstance(result, str):
            raise TrialFailed(result)
        np.save(side.output(self.ground, name), result)
        yield None


@pytest.fixture
def machine(tmp_path):
    def make(results):
        made = WithoutProcesses(Ground("a model", 2, 1.0, str(tmp_path)), Shapes(1, 8), DEFAULT)
        made.results = results
        return made

    return make


def opened(machine, setting):
    with machine.open(setting):
        return True


def test_results_as_the_default_has_them_are_right(machine):
    used = machine({("torch", "bf16"): np.ones(8) * 1.001, ("onnxruntime", "fp32"): np.ones(8) * 1.0001})
    assert opened(used, DEFAULT) and opened(used, BF16) and opened(used, ONNX)
    assert used.unverified == ""


def test_other_results_are_a_failed_trial(machine):
    used = machine({("onnxruntime", "fp32"): np.ones(8) * 1.01})
    opened(used, DEFAULT)
    for _ in range(2):
        with pytest.raises(TrialFailed, match="its results differ by"):
            opened(used, ONNX)
    assert opened(used, BF16)


def test_the_default_is_started_for_its_results_where_a_search_goes_on(machine):
    used = machine({("onnxruntime", "fp32"): np.zeros(8)})
    with pytest.raises(TrialFailed, match="its results differ by"):
        opened(used, ONNX)
    assert used.started == (ONNX, DEFAULT)


def test_without_a_default_nothing_is_verified_and_that_is_said(machine):
    used = machine({("torch", "fp32"): "no memory"})
    assert opened(used, BF16)
    assert used.unverified == "results could not be compared with the default's: no memory"


@pytest.mark.parametrize(
    "setting", [DEFAULT, Setting("torch", threads=1, instances=2, wait_policy="passive")]
)
def test_a_side_is_started_as_hfaccel_run_starts_its_profile(tmp_path, setting):
    used = ModelMachine(Ground("a model", 2, 1.0, str(tmp_path)), Shapes(1, 8), DEFAULT)
    sides = used._sides(setting, "side0")
    assert len(sides) == setting.instances
    for number, one in enumerate(sides):
        index = ["--instance-idx", str(number)] if setting.instances > 1 else []
        assert list(one.launcher[3:]) == ["--profile", str(tmp_path / "side0.toml"), *index]
        assert one.environment == {}  # variables would win over the profile
    assert read_profile(tmp_path / "side0.toml").knobs == profile_of(setting).knobs


def test_a_profile_names_every_knob_that_was_varied():
    setting = Setting("torch", "bf16", 4, 2, 1, "jemalloc", "intel", "active", "off")
    profile = profile_of(setting)
    assert profile.knobs == {
        "threads": 4,
        "interop_threads": 1,
        "allocator": "jemalloc",
        "omp_runtime": "intel",
        "omp_wait_policy": "active",
        "huge_pages": "off",
    }
    assert profile.request() == Request(instances=2, cores_per_instance=4)


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        (Setting(), ""),
        (Setting("torch"), "hfaccel.optimize(model, backend='torch')"),
        (Setting("torch", "bf16"), "hfaccel.optimize(model, backend='torch', dtype=torch.bfloat16)"),
        (Setting("torch", "int8"), "hfaccel.optimize(model, backend='torch', quantization='int8')"),
    ],
)
def test_a_line_of_python_asks_for_the_model_of_a_setting(setting, line):
    assert arguments_of(setting) == line


def test_other_threads_than_asked_for_are_a_failed_trial():
    class Crew:
        alive, failure, skipped = True, "", ""

        def sample(self):
            return {"seconds": 1.0, "threads": 3}

    with pytest.raises(TrialFailed, match="it must have 2 threads, but has 3"):
        ModelRunner(Crew(), 2).sample()
    assert ModelRunner(Crew(), 3).sample()["seconds"] == 1.0
