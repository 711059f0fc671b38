"""What a decoder's mask says, and when it says more than the kernels know."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from hfaccel.engine.calls.followed import Followed, read_followed

HIDDEN = torch.finfo(torch.float32).min


def mask_of(spans, columns, past, window):
    """(batch, 1, columns, past + columns), one number after the other."""
    mask = torch.zeros(len(spans), 1, columns, past + columns, dtype=torch.bool)
    for text, (begin, end) in enumerate(spans):
        for row in range(columns):
            for key in range(past + columns):
                place = past + row
                seen = begin <= key <= place and key < end and (window < 0 or place - key <= window)
                mask[text, 0, row, key] = seen
    return mask


@st.composite
def cases(draw):
    columns, past = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    ends = draw(st.lists(st.integers(1, past + columns), min_size=1, max_size=3))
    spans = [(draw(st.integers(0, end - 1)), end) for end in ends]
    return spans, columns, past, draw(st.sampled_from([-1, -1, 0, 1, 3, 20]))


def seen_by(found, columns, past):
    """The mask that a reading stands for."""
    all_seen = [(0, past + columns)] * found.sequences.count
    spans = all_seen if found.seen is None else found.seen.tolist()
    return mask_of(spans, columns, past, found.sequences.window)


@given(cases(), st.booleans(), st.booleans())
def test_a_mask_is_read_as_it_was_made(case, adds, unpad):
    spans, columns, past, window = case
    mask = mask_of(spans, columns, past, window)
    assume(mask.any(2).any(2).all())
    begins = [begin for begin, _ in spans]
    given = torch.where(mask, 0.0, HIDDEN) if adds else mask
    found = read_followed(given, len(begins), columns, past, window, unpad)
    assert isinstance(found, Followed)
    assert torch.equal(seen_by(found, columns, past), mask)
    padding = [max(0, begin - past) for begin in begins] if unpad else [0] * len(begins)
    first = [text * columns + rows for text, rows in enumerate(padding)]
    assert found.sequences.first.tolist() == first or not any(begins)
    assert found.hides_rows == any(padding)


@given(cases(), st.data())
def test_one_more_or_less_is_noticed(case, data):
    spans, columns, past, window = case
    mask = mask_of(spans, columns, past, window)
    place = data.draw(st.integers(0, mask.numel() - 1))
    mask.view(-1)[place] ^= True
    found = read_followed(mask, len(spans), columns, past, window)
    if isinstance(found, Followed):  # another mask of the same sort
        assert torch.equal(seen_by(found, columns, past), mask)


@given(cases())
def test_without_a_mask_a_token_sees_those_before_it(case):
    spans, columns, past, window = case
    found = read_followed(None, len(spans), columns, past, window)
    if past and columns > 1:
        assert found == "there is no mask for several tokens after others"
    else:
        assert torch.equal(
            seen_by(found, columns, past), mask_of([(0, past + columns)] * len(spans), columns, past, -1)
        )


@given(cases())
def test_other_shapes_and_numbers_are_told(case):
    spans, columns, past, window = case
    mask = mask_of(spans, columns, past, window)
    wanted = len(spans), columns, past, window
    assert "has the shape" in read_followed(mask[..., 1:], *wanted)
    assert "has the shape" in read_followed(mask[:, 0], *wanted)
    assume(mask.any())
    assert read_followed(torch.where(mask, -0.5, HIDDEN), *wanted) == "the attention mask adds to the scores"
