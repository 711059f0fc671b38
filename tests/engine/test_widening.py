"""int8 and bfloat16 on CPUs without instructions for them: taken where that is faster, and told."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_kernels

import hfaccel
from hfaccel.engine.calibration import widening
from hfaccel.engine.kernels import Kind, multiplies
from hfaccel.engine.weights.packed import PackedWeight

pytestmark = [pytest.mark.measured, needs_kernels]

OPTIONS = {Kind.BFLOAT16: {"dtype": torch.bfloat16}, Kind.INT8: {"quantization": "int8"}}


@pytest.fixture
def gains_are(monkeypatch):
    """gains_are(few, some): as if the set in use multiplied float32 alone, this much slower."""

    def patch(*speedups):
        monkeypatch.setattr(widening, "multiplies", lambda kind: kind is Kind.FLOAT32)
        monkeypatch.setattr(widening, "widening_speedups", lambda kind, threads: speedups)

    return patch


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize(
    ("speedups", "taken"),
    [((2.0, 1.5), True), ((1.4, 0.92), True), ((1.0, 1.0), False), ((3.0, 0.8), False), ((0.9, 0.9), False)],
)
def test_what_is_not_faster_is_computed_in_float32(bert, batch, gains_are, kind, speedups, taken):
    gains_are(*speedups)
    fast = hfaccel.optimize(bert, backend="torch", **OPTIONS[kind])
    kinds = {m.weight.kind for m in fast.modules() if isinstance(getattr(m, "weight", None), PackedWeight)}
    assert (kind in kinds) is taken
    (line,) = (line for line in hfaccel.report(fast).outcomes if line.subject == f"precision {kind.label}")
    assert line.applied is taken
    assert (
        f"{speedups[0]:.2f} times (with few rows) and {speedups[1]:.2f} times (with some rows)" in line.reason
    )
    with torch.inference_mode():
        got, expected = fast(**batch)[0], bert(**batch)[0]
    mask = batch["attention_mask"].bool()
    tolerance = {"rtol": 0, "atol": 0.1 if taken else 1e-5}
    torch.testing.assert_close(got[mask], expected[mask], **tolerance)


def test_what_the_cpu_multiplies_is_not_measured(monkeypatch, bert):
    monkeypatch.setattr(widening, "widening_speedups", None)  # not to be called
    for kind in filter(multiplies, Kind):
        assert widening.widening_problem(kind) == widening.widening_gain(kind) == ""
    subjects = {line.subject for line in hfaccel.report(hfaccel.optimize(bert)).outcomes}
    assert "kernels" in subjects and not any(subject.startswith("precision") for subject in subjects)


@pytest.mark.parametrize("kind", Kind)
def test_gains_are_measured_with_few_and_some_rows(kind):
    random = torch.get_rng_state()
    speedups = widening.widening_speedups.__wrapped__(kind, 1)
    assert len(speedups) == 2 and all(gain > 0 for gain in speedups)
    assert torch.equal(torch.get_rng_state(), random)
