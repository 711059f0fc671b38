"""A plugin of pytest, in the process that runs another project's tests: the same random numbers in every run,
models optimized as UPSTREAM_MODE says, and one line of JSON for each test in UPSTREAM_RESULTS.

stock: hfaccel does nothing. auto: what HFACCEL_AUTO=1 does, to models that are loaded. eval: also every model
of transformers that a test builds itself, when the test calls its `eval()`, and every pipeline, when it is
called.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

NOT_COMPUTED = ("kernels", "huge pages")  # what applies to a model of which nothing is computed by hfaccel
MODE = os.environ["UPSTREAM_MODE"]
results = Path(os.environ["UPSTREAM_RESULTS"])
optimized: collections.Counter[str] = collections.Counter()  # backend's name -> models
applied: collections.Counter[str] = collections.Counter()  # what was applied -> how often
computed: collections.Counter[str] = collections.Counter()  # function of the kernels -> calls
left: collections.Counter[str] = collections.Counter()  # why a model was left as it is -> models


def pytest_configure() -> None:
    results.write_text("")
    if MODE == "stock":
        return
    _everything_pays()
    _count_what_is_optimized()
    _count_kernel_calls()
    if MODE == "eval":
        _optimize_on_eval()
        _optimize_called_pipelines()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """A test that fails in one run and passes in another must not do so because it drew other numbers."""
    import numpy
    import torch

    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
    shared = sys.modules.get("tests.test_modeling_common")  # ids are drawn from a generator of its own
    if shared is not None:
        shared.global_rng.seed(0)


def pytest_runtest_logreport(report: Any) -> None:
    if report.when == "call" or report.outcome != "passed":
        _write({"test": report.nodeid, "outcome": report.outcome, "message": _last_lines(report)})


def pytest_collectreport(report: Any) -> None:
    if report.outcome == "failed":
        _write({"test": report.nodeid, "outcome": "failed", "message": _last_lines(report)})


def pytest_sessionfinish() -> None:
    counts = {"optimized": optimized, "applied": applied, "left": left, "computed": computed}
    _write({"finished": True, **counts})


def _write(line: dict[str, Any]) -> None:
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _last_lines(report: Any) -> str:
    """The end of a failure's message: what was raised, and where."""
    return str(report.longreprtext).strip()[-1500:] if report.outcome == "failed" else ""


def _everything_pays() -> None:
    """Models of tests are so small that hfaccel would leave most of them alone, and time would decide about
    the rest. What is computed is tested here."""
    from hfaccel.engine.calibration import speedups, widening
    from hfaccel.engine.convolutions import convolution, prepared
    from hfaccel.engine.weights import linear

    speedups.BUDGET = 0  # nothing is timed, so nothing is slower
    widening.LEAST = widening.WORTH = 0
    for module in (convolution, linear, prepared):
        module.MIN_WIDTH = 1


def _count_what_is_optimized() -> None:
    from hfaccel import optimization, reporting

    optimize_model = optimization._optimize_model

    @functools.wraps(optimize_model)
    def counted(model: Any, *arguments: Any, **keywords: Any) -> Any:
        before = reporting.record_of(model)
        result = optimize_model(model, *arguments, **keywords)
        record = reporting.record_of(result)
        if record is None or record is before:
            return result
        done = {o.subject: o.count for o in record.outcomes if o.applied and o.subject not in NOT_COMPUTED}
        if record.backend and done:
            optimized[record.backend] += 1
            applied.update(done)
        else:
            left["; ".join(sorted({outcome.reason for outcome in record.outcomes}))[:200]] += 1
        return result

    optimization._optimize_model = counted


def _count_kernel_calls() -> None:
    """Models that are optimized and then run as stock in every call would test nothing."""
    from hfaccel.engine.kernels import kernels

    module = kernels()
    for name in ("run_layers", "linear", "embed"):
        setattr(module, name, functools.partial(_counted, name, getattr(module, name)))


def _counted(name: str, call: Any, *arguments: Any) -> Any:
    computed[name] += 1
    return call(*arguments)


def _optimize_on_eval() -> None:
    from transformers import PreTrainedModel

    import hfaccel
    from hfaccel import auto

    def evaluate(self: Any) -> Any:
        super(PreTrainedModel, self).eval()
        if not getattr(
            auto._loading, "depth", 0
        ):  # what is being loaded hfaccel.auto optimizes when it is whole
            with _own_random_numbers():
                hfaccel.optimize(
                    self, inplace=True, unpad=False
                )  # as hfaccel.auto does, but errors are raised
        return self

    PreTrainedModel.eval = evaluate


def _optimize_called_pipelines() -> None:
    """Tests make pipelines by their class, which hfaccel.auto leaves alone."""
    from transformers import Pipeline

    import hfaccel

    call = Pipeline.__call__

    @functools.wraps(call)
    def called(self: Any, *arguments: Any, **keywords: Any) -> Any:
        hfaccel.optimize(self, inplace=True, unpad=False)
        return call(self, *arguments, **keywords)

    Pipeline.__call__ = called


@contextlib.contextmanager
def _own_random_numbers() -> Any:
    """Optimizing must draw none of the test's."""
    import torch

    before = torch.get_rng_state()
    yield
    assert torch.equal(before, torch.get_rng_state()), "optimize() changed torch's random numbers"
