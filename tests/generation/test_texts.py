"""Text that comes piece by piece is the text; nothing of a stop string is given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.generation.texts import Text


class Bytes:
    """A tokenizer of bytes: one character may need several tokens. 0 is special."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return bytes(filter(None, token_ids)).decode("utf-8", errors="replace")


class Words:
    """A tokenizer whose first word loses its space, as SentencePiece's do."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return " ".join(f"w{number}" for number in token_ids)


def pieces(text, tokens):
    return [text.feed(token) for token in tokens], text.end()


TEXTS = st.text(st.sampled_from("ab\N{EURO SIGN}\N{GRINNING FACE}"), max_size=30)


@given(TEXTS)
def test_all_of_a_text(text):
    made, rest = pieces(Text(Bytes()), [0, *text.encode()])
    assert "".join(made) + rest == text


def test_half_characters_wait():
    made, rest = pieces(Text(Bytes()), "a\N{EURO SIGN}b".encode())
    assert made == ["a", "", "", "\N{EURO SIGN}", "b"]
    assert rest == ""


def test_what_is_left_of_a_character_comes_at_the_end():
    made, rest = pieces(Text(Bytes()), "a\N{EURO SIGN}".encode()[:-1])
    assert (made, rest) == (["a", "", ""], "\N{REPLACEMENT CHARACTER}")


def test_spaces_between_words():
    assert pieces(Text(Words()), [1, 2, 3]) == (["w1", " w2", " w3"], "")


@given(TEXTS, st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=4), max_size=3))
def test_up_to_the_first_stop_string(text, stop):
    """The one that is complete first, as characters come one by one."""
    places = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
    wanted = text[: min(places)[1]] if places else text
    made = Text(Bytes(), stop)
    given = [made.feed(token) for token in text.encode()]
    assert "".join(given) + made.end() == wanted
    assert made.stopped == bool(places)


@pytest.mark.parametrize(("tokens", "wanted"), [(b"ab", ["a", ""]), (b"abx", ["a", "", "bx"])])
def test_what_may_become_a_stop_string_is_held_back(tokens, wanted):
    text = Text(Bytes(), ["bc"])
    assert [text.feed(token) for token in tokens] == wanted
    assert text.end() == "".join(["b"] if wanted[-1] == "" else [])
