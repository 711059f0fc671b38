"""Which slot a prompt starts in, and what it takes over there."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.generation.prefixes import LEAST, Reuse, choose, shared, waits

PROMPT = list(range(20))
TOKENS = st.lists(st.integers(0, 2), max_size=30)


@given(TOKENS, TOKENS, TOKENS)
def test_shared(beginning, one, other):
    one, other = beginning + one, beginning + other
    count = shared(one, other)
    assert one[:count] == other[:count]
    assert count == min(len(one), len(other)) or one[count] != other[count]


@pytest.mark.parametrize(
    ("held", "free", "wanted"),
    [
        ({}, [0, 1], Reuse(0, 0, 0)),
        ({0: [9] * 20}, [0, 1], Reuse(1, 1, 0)),  # what slot 0 holds may be of use later
        ({0: [9], 1: [9]}, [1, 0], Reuse(1, 1, 0)),  # the one that was used longest ago
        ({0: PROMPT[: LEAST - 1]}, [0, 1], Reuse(1, 1, 0)),  # not worth it
        ({0: PROMPT[:LEAST]}, [0, 1], Reuse(0, 0, LEAST)),  # in place
        ({0: PROMPT}, [1], Reuse(1, 0, 19)),  # of a running request; the last token is computed
        ({0: [*PROMPT, *[7] * 30]}, [0, 1], Reuse(1, 0, 19)),  # in place, most of it would be lost
        ({0: [*PROMPT, *[7] * 30]}, [0], Reuse(0, 0, 19)),  # no other slot
        ({0: PROMPT[:9], 1: PROMPT[:12], 2: [5]}, [0, 2], Reuse(0, 1, 12)),
        ({0: PROMPT[:12], 1: PROMPT[:12]}, [1], Reuse(1, 1, 12)),  # rather without a copy
    ],
)
def test_choose(held, free, wanted):
    assert choose(PROMPT, held, free) == wanted


def test_waits_for_what_is_computed_now():
    assert waits(PROMPT, 0, [PROMPT[:15]])
    assert waits(PROMPT, 7, [PROMPT[:15]])
    assert not waits(PROMPT, 8, [PROMPT[:15]])  # most of it is there already
    assert not waits(PROMPT, 0, [PROMPT[: LEAST - 1], [3] * 15])
