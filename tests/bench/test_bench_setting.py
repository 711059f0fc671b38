import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench import setting as module
from hfaccel.bench.setting import Setting
from hfaccel.commands.run_options import parse
from hfaccel.errors import UsageError
from hfaccel.plan import check_knobs
from hfaccel.precision import Precision, asked_for

counts = st.none() | st.integers(1, 64)
SETTINGS = st.builds(
    Setting,
    backend=st.sampled_from(["eager", "torch", "openvino"]),
    precision=st.sampled_from(module.PRECISIONS),
    threads=counts,
    instances=st.integers(1, 8),
    interop_threads=counts,
    allocator=st.sampled_from(module.ALLOCATORS),
    omp_runtime=st.sampled_from(module.OMP_RUNTIMES),
    wait_policy=st.sampled_from(module.WAIT_POLICIES),
    huge_pages=st.sampled_from(module.HUGE_PAGES),
    token_budget=counts,
)


def test_the_baseline_is_plain_transformers_under_plain_python():
    baseline = Setting()
    assert baseline.backend == "eager"
    assert not baseline.launched
    assert baseline.launcher_options() == ()
    assert baseline.environment() == baseline.optimize_arguments() == baseline.knobs() == {}
    assert baseline.label() == "eager fp32"


def test_what_only_hfaccel_run_can_change_starts_hfaccel_run():
    assert not Setting("torch", "int8", threads=2, wait_policy="passive", interop_threads=1).launched
    for changed in (
        {"allocator": "glibc"},
        {"omp_runtime": "intel"},
        {"huge_pages": "auto"},
        {"instances": 2},
    ):
        assert Setting(**changed).launched


@given(SETTINGS)
def test_a_setting_survives_json(setting):
    assert Setting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


@given(SETTINGS, SETTINGS)
def test_different_settings_have_different_labels(one, other):
    assert (one.label() == other.label()) == (one == other)


@given(SETTINGS)
def test_hfaccel_run_understands_the_options(setting):
    instance = setting.instances - 1
    _, asked, program = parse([*setting.launcher_options(instance), "script.py"])
    assert program == ["script.py"]
    if setting.launched:
        overrides = {"allocator": setting.allocator, "omp_runtime": setting.omp_runtime}
        assert overrides.items() <= asked.overrides.items()
        assert asked.overrides["huge_pages"] == setting.huge_pages
        assert asked.overrides.get("threads") == (setting.threads and str(setting.threads))
    if setting.instances > 1:
        assert (asked.request.instances, asked.instance) == (setting.instances, instance)


@given(SETTINGS)
def test_the_knobs_are_knobs_of_the_plan(setting):
    check_knobs(setting.knobs(), "a setting")


def test_knobs_name_what_differs_from_the_stock_program():
    knobs = Setting("torch", threads=2, allocator="mimalloc", wait_policy="active", huge_pages="auto").knobs()
    assert knobs == {
        "threads": 2,
        "omp_wait_policy": "active",
        "allocator": "mimalloc",
        "huge_pages": "auto",
    }


def test_threads_and_waiting_are_variables():
    assert Setting(threads=3, wait_policy="passive").environment() == {
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "OMP_WAIT_POLICY": "passive",
    }


def test_the_precisions_are_those_of_optimize():
    assert set(module.PRECISIONS) == {precision.short for precision in Precision}


@pytest.mark.parametrize("precision", module.PRECISIONS)
def test_precisions_become_arguments_of_optimize(precision):
    import torch

    arguments = Setting("torch", precision).optimize_arguments()
    assert arguments["backend"] == "torch"
    dtype = getattr(torch, arguments["dtype"]) if "dtype" in arguments else None
    asked = asked_for(dtype, arguments.get("quantization"))
    assert (asked.short if asked else "fp32") == precision


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("backend", "", "backend must be a name"),
        ("precision", "fp64", "precision must be one of fp32, bf16"),
        ("threads", 0, "`threads >= 1`"),
        ("threads", True, "`threads >= 1`"),
        ("instances", None, "`instances >= 1`"),
        ("interop_threads", -1, "`interop_threads >= 1`"),
        ("allocator", "hoard", "allocator must be one of default, auto"),
        ("omp_runtime", "auto", "omp_runtime must be one of default, intel"),
        ("wait_policy", "lazy", "wait_policy must be one of None, active, passive"),
        ("huge_pages", "thp", "huge_pages must be one of off, auto"),
        ("token_budget", 0, "`token_budget >= 1`"),
    ],
)
def test_a_value_that_breaks_a_rule_is_refused(field, value, said):
    with pytest.raises(UsageError, match=said):
        Setting(**{field: value})


def test_unknown_fields_are_refused_and_missing_ones_are_stock():
    assert Setting.from_dict({"backend": "torch"}) == Setting("torch")
    with pytest.raises(UsageError, match="but got cores; the file may come from another version"):
        Setting.from_dict({"cores": 2})
