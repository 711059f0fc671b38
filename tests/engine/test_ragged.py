"""Masks of every form: the sequences that are read from them, and results equal to stock with them."""

from __future__ import annotations

import copy

import pytest
import torch
from encoders import inputs, make, run
from hypothesis import given, settings
from hypothesis import strategies as st

import hfaccel
from hfaccel.engine.calls.ragged import read_mask
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 12


def padding(lengths, left=()):
    """(batch, LENGTH), True for real tokens; rows named in `left` are padded on the left."""
    mask = torch.arange(LENGTH)[None] < torch.tensor(lengths)[:, None]
    for row in left:
        mask[row] = mask[row].flip(0)
    return mask


def forms(mask):
    """The same padding as every mask that a layer may be given."""
    batch = mask.shape[0]
    short = mask[:, None, None, :]
    full = short.expand(batch, 1, LENGTH, LENGTH)
    for visible in (short, full, full.clone()):
        yield visible
        for hidden in (torch.finfo(torch.float32).min, -1e4, float("-inf")):
            yield torch.where(visible, 0.0, hidden)
        yield torch.where(visible, 0.0, torch.finfo(torch.bfloat16).min).bfloat16()


@pytest.mark.parametrize("left", [(), (0, 1, 2), (1,)])
def test_every_form_of_padding_is_read(left):
    mask = padding([12, 5, 1], left)
    firsts = [row * LENGTH + (LENGTH - length if row in left else 0) for row, length in enumerate([12, 5, 1])]
    for form in forms(mask):
        found = read_mask(form, 3, LENGTH)
        assert found.first.tolist() == firsts and found.length.tolist() == [12, 5, 1]
        assert found.skipped is None and found.seen is None


def test_padding_that_is_computed_is_not_seen():
    found = read_mask(padding([12, 5], (1,))[:, None, None], 2, LENGTH, unpad=False)
    assert found.length.tolist() == [12, 12] and found.first.tolist() == [0, 12]
    assert found.skipped.tolist() == [0, 7] and found.seen.tolist() == [12, 5]


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()[None, None]
HOLES = padding([12, 9])
HOLES[1, 3] = False


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (CAUSAL, "hides more than padding"),
        (HOLES[:, None, None], "holes"),
        (padding([12, 0])[:, None, None], "all padding"),
        (torch.zeros(2, 1, 1, LENGTH).index_fill(3, torch.tensor([4]), -0.5), "adds to the scores"),
        (torch.zeros(2, 1, 1, LENGTH).index_fill(3, torch.tensor([4]), float("nan")), "adds to the scores"),
        (padding([12, 5]), "shape"),
        (padding([12, 5])[:, None, None, :-1], "shape"),
        (torch.ones(2, 4, LENGTH, LENGTH, dtype=torch.bool), "shape"),
        (torch.ones(3, 1, 1, LENGTH, dtype=torch.bool), "shape"),
        (torch.ones(2, 1, 5, LENGTH, dtype=torch.bool), "shape"),
    ],
)
def test_what_is_more_than_padding_is_a_reason(mask, reason):
    assert reason in read_mask(mask, 2, LENGTH)


def test_a_window_must_be_in_the_mask():
    near = (torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)).abs() <= 3
    mask = padding([12, 7])[:, None, None] & near
    assert read_mask(mask, 2, LENGTH, window=3).window == 3
    assert "more than padding" in read_mask(mask, 2, LENGTH, window=4)
    assert "more than padding" in read_mask(mask, 2, LENGTH)
    assert read_mask(padding([12, 7])[:, None, None], 2, LENGTH, window=3).window == -1  # seen by all


@pytest.mark.parametrize("inference", [False, True])
def test_a_mask_that_changes_in_place_is_read_again(inference):
    with torch.inference_mode(inference):
        mask = padding([12, 7])[:, None, None].clone()
        for length in (7, 4, 9):
            mask[1, :, :, :] = torch.arange(LENGTH) < length
            for _ in range(3):
                assert read_mask(mask, 2, LENGTH).length.tolist() == [12, length]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("change", ["in torch", "in numpy"])
def test_models_that_share_a_mask_see_its_change_between_them(inference, change):
    """As an ensemble does that fills one buffer again and again."""
    stock = make("BERT"), make("RoBERTa")
    fast = [hfaccel.optimize(copy.deepcopy(each)) for each in stock]
    given = inputs("BERT", "none", LENGTH)
    with torch.inference_mode(inference), torch.no_grad():
        mask = torch.ones(3, 1, LENGTH, LENGTH, dtype=torch.bool)
        for length, pair in zip((LENGTH, 5), zip(stock, fast, strict=True), strict=True):
            if change == "in torch":
                mask[..., length:] = False
            else:
                mask.numpy()[..., length:] = False
            expected, got = (each(**given, attention_mask=mask)[0] for each in pair)
            torch.testing.assert_close(got[:, :length], expected[:, :length], rtol=0, atol=1e-5)


PAIRS = {}


def pair(name, **options):
    """A stock model and its optimized twin, made once."""
    key = name, tuple(options)
    if key not in PAIRS:
        PAIRS[key] = make(name), hfaccel.optimize(make(name), **options)
    return PAIRS[key]


@given(
    name=st.sampled_from(["BERT", "MPNet", "ModernBERT", "NomicBERT"]),
    rows=st.lists(st.lists(st.booleans(), min_size=LENGTH, max_size=LENGTH), min_size=1, max_size=4),
)
@settings(max_examples=25)
def test_any_holes_give_what_stock_gives(name, rows):
    """Also rows that are all padding, where stock gives what it gives."""
    stock, fast = pair(name)
    mask = torch.tensor(rows).long()
    given = {
        "input_ids": inputs("BERT", length=LENGTH)["input_ids"][:1].repeat(len(rows), 1),
        "attention_mask": mask,
    }
    expected, got, real = run(stock, given), run(fast, given), mask.bool()
    torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-5, equal_nan=True)


@given(
    name=st.sampled_from(["BERT", "RoBERTa", "DistilBERT", "ModernBERT"]),
    lengths=st.lists(st.integers(1, LENGTH), min_size=1, max_size=4),
    left=st.sets(st.integers(0, 3)),
    form=st.integers(0, 4),
    unpad=st.booleans(),
)
@settings(max_examples=30)
def test_masks_with_four_dimensions(name, lengths, left, form, unpad):
    stock, fast = pair(name) if unpad else pair(name, unpad=False)
    real = padding(lengths, {row for row in left if row < len(lengths)})
    mask = list(forms(real))[5 + form]  # (batch, 1, length, length)
    ids = inputs("BERT", length=LENGTH, seed=3)["input_ids"][:1].repeat(len(lengths), 1)
    given = {"input_ids": ids, "attention_mask": mask.float() if mask.dtype is torch.bfloat16 else mask}
    if name == "ModernBERT":
        given["attention_mask"] = real.long()
    expected, got = run(stock, given), run(fast, given)
    where = real if unpad else torch.ones_like(real)
    torch.testing.assert_close(got[where], expected[where], rtol=0, atol=1e-5)


@pytest.mark.parametrize("inference", [False, True])
def test_a_users_mask_that_changes_in_place_is_obeyed(inference):
    stock, fast = pair("BERT")
    ids = inputs("BERT", length=LENGTH)["input_ids"][:2]
    with torch.inference_mode(inference):
        mask = torch.ones(2, 1, LENGTH, LENGTH, dtype=torch.bool)
        for length in (12, 5, 8):
            mask[1] = torch.arange(LENGTH) < length
            given = {"input_ids": ids, "attention_mask": mask}
            got, expected = run(fast, given), run(stock, given)
            torch.testing.assert_close(got[1, :length], expected[1, :length], rtol=0, atol=1e-5)


def test_texts_do_not_see_each_other():
    """Any text alone gives what it gives in a batch, whatever lies in the padding."""
    _, fast = pair("BERT")
    given = inputs("BERT", "left", length=LENGTH)
    together = run(fast, given)
    given["input_ids"] = given["input_ids"].masked_fill(given["attention_mask"] == 0, 7)
    shown = given["attention_mask"].bool()
    torch.testing.assert_close(run(fast, given)[shown], together[shown], rtol=0, atol=1e-5)
