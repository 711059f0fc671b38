"""Any sequence of what programs do to a model leaves an optimized model and its stock twin in agreement.

HFACCEL_TORTURE is the number of sequences; 2000 is the full run. With HFACCEL_TORTURE_RANDOM=1 each run draws
others. A failure prints the operations that show
it, shortened, as a call of `torture` that can be pasted into a test.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import operations as op
import pytest
import torch
from conftest import needs_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twins import MODELS, Inputs, Twins, infer, make

import hfaccel
from hfaccel.engine.calibration import speedups
from hfaccel.engine.layers.layer import FusedLayer
from hfaccel.errors import StockPathWarning

SEQUENCES = int(os.environ.get("HFACCEL_TORTURE", "60"))
pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread", "always_faster")]

NUMBERS = st.integers(0, 99)
MASK_TYPES = st.sampled_from([torch.long, torch.bool, torch.float32])
INPUTS = st.builds(
    Inputs,
    mask=st.sampled_from(["right", "left", "none", "full", "holes", "empty"]),
    length=st.sampled_from([9, 1, 16, 25]),
    others=st.booleans(),
    seed=st.integers(0, 3),
    mask_type=MASK_TYPES,
)
ASKED = st.sampled_from(
    [(), (("output_hidden_states", True),), (("return_dict", False),), (("output_attentions", True),)]
)
OPTIMIZE = st.builds(
    op.Optimize, st.sampled_from([*op.PRECISIONS]), inplace=st.booleans(), again=st.booleans()
)
OPERATIONS = st.one_of(
    OPTIMIZE,
    st.builds(op.Optimize, st.sampled_from([*op.PRECISIONS]), given=st.booleans(), again=st.just(True)),
    st.just(op.Restore()),
    st.just(op.SaveAndLoad()),
    st.just(op.Share()),
    st.builds(op.Call, INPUTS, st.sampled_from([*op.WAYS]), ASKED),
    st.builds(op.Patch, NUMBERS),
    st.builds(op.Hook, NUMBERS, st.sampled_from(["larger", "seen", "input"])),
    st.builds(op.Attribute, NUMBERS),
    st.builds(op.Activation, NUMBERS),
    st.builds(op.Dropout, NUMBERS),
    st.just(op.EagerAttention()),
    st.builds(op.ResizeEmbeddings, st.sampled_from([520, 450, 500])),
    st.builds(op.To, st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])),
    st.just(op.ThroughHalf()),
    st.just(op.ShareMemory()),
    st.builds(op.Copy, st.sampled_from(["deepcopy", "pickle"])),
    st.builds(
        op.LoadStateDict, st.sampled_from(["own", "stock"]), st.booleans(), st.sampled_from([1.0, 0.8])
    ),
    st.builds(op.EditWeight, NUMBERS, st.sampled_from([*op.EDITS])),
    st.builds(op.Train, INPUTS, st.booleans(), st.booleans()),
)


@pytest.fixture(scope="module")
def always_faster():
    """What the kernels do is tested, and not where a measurement lets them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speedups, "time_pairs", lambda stock, fast: speedups.Times(2.0, 1.0, 3, 0))
        yield


@given(st.sampled_from([*MODELS]), OPTIMIZE, st.lists(OPERATIONS, min_size=1, max_size=8))
@settings(
    max_examples=SEQUENCES,
    derandomize="HFACCEL_TORTURE_RANDOM" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[*HealthCheck],
)
def test_operations_leave_twins_in_agreement(name: str, first: Any, more: list[Any]) -> None:
    torture(name, [first, *more])


def torture(name: str, sequence: Sequence[Any]) -> None:
    twins = Twins(name, make(name), make(name))
    with twins.patches, warnings.catch_warnings():
        warnings.simplefilter("ignore", StockPathWarning)
        for number, operation in enumerate(sequence):
            try:
                operation(twins)
                for seen in (Inputs(("right", "left")[number % 2], seed=number), Inputs("none", seed=number)):
                    twins.check(seen, infer)
            except AssertionError as error:
                error.add_note(f"after {number + 1} of torture({name!r}, {[*sequence]})")
                raise


@pytest.mark.parametrize("name", [name for name in MODELS if name != "GPT-2"])
@pytest.mark.parametrize("precision", op.PRECISIONS)
def test_the_kernels_run(name: str, precision: str) -> None:
    """Or the twins would agree for another reason."""
    twins = Twins(name, make(name), make(name))
    op.Optimize(precision)(twins)
    twins.check(Inputs(), infer)
    assert any(isinstance(module, FusedLayer) for module in twins.fast.modules())
    assert not hfaccel.report(twins.fast).stock_calls
