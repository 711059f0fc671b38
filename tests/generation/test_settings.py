"""What a request may ask for, and what comes from the model's generation config."""

from __future__ import annotations

import pytest
from transformers import GenerationConfig

from hfaccel.errors import UsageError
from hfaccel.generation.config import unknown
from hfaccel.generation.settings import Settings, check_prompt, make_settings


def test_defaults_of_the_model_and_of_hfaccel():
    config = GenerationConfig(
        do_sample=True, temperature=0.5, eos_token_id=[2, 3], max_new_tokens=9
    ).to_dict()
    made = make_settings(config, {"top_k": 4, "temperature": None, "stop": "x"}, most=50)
    assert made == Settings(
        max_new_tokens=9, do_sample=True, temperature=0.5, top_k=4, stop=("x",), eos=frozenset([2, 3])
    )
    assert make_settings(config, {"eos_token_id": ()}, most=50).eos == frozenset()


def test_new_tokens_fill_the_room_and_no_more():
    assert make_settings({}, {}, most=7).max_new_tokens == 7
    assert make_settings({}, {"max_new_tokens": 70}, most=7).max_new_tokens == 7


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens >= 1` must hold, but got 0"),
        ({"max_new_tokens": 1.5}, "`max_new_tokens >= 1` must hold, but got 1.5"),
        ({"temperature": 0}, "`0 < temperature <= 100` must hold, but got 0; do_sample=False"),
        ({"temperature": "hot"}, "temperature <= 100` must hold, but got 'hot'"),
        ({"top_p": 1.1}, "`0 <= top_p <= 1` must hold, but got 1.1"),
        ({"top_p": float("nan")}, "must hold, but got nan"),
        ({"min_p": -1}, "`0 <= min_p <= 1` must hold, but got -1"),
        ({"top_k": -1}, "`top_k >= 0` must hold, but got -1"),
        ({"min_new_tokens": True}, "`min_new_tokens >= 0` must hold, but got True"),
        ({"repetition_penalty": 0}, "repetition_penalty <= 100` must hold, but got 0"),
        ({"seed": "x"}, "`seed` must be an integer of 64 bits or None, but got 'x'"),
        ({"stop": [""]}, "`stop` must be texts that are not empty"),
        ({"stop": [3]}, "`stop` must be texts that are not empty"),
        ({"eos_token_id": ["a"]}, "`eos_token_id` must be a token or several"),
        ({"beams": 3}, "a setting must be one of .*, but got beams"),
    ],
)
def test_rules(asked, message):
    with pytest.raises(UsageError, match=message):
        make_settings({}, asked, most=20)


def test_prompts():
    assert check_prompt([3, 4], 5, 3) == [3, 4]
    for ids, message in (
        ([], "a prompt must have a token"),
        ([1, 1, 1], "must be shorter than 3 tokens, but has 3"),
        ([5], "from 0 to 4, but got 5"),
        ([-1], "from 0 to 4, but got -1"),
        (["x"], "from 0 to 4, but got 'x'"),
        ([True], "from 0 to 4, but got True"),
    ):
        with pytest.raises(UsageError, match=message):
            check_prompt(ids, 5, 3)


def test_configs_that_ask_for_more():
    assert unknown(GenerationConfig().to_dict()) == []
    assert unknown(GenerationConfig(do_sample=True, top_k=3, typical_p=1.0, num_beams=1).to_dict()) == []
    assert unknown(GenerationConfig(num_beams=2).to_dict()) == ["num_beams"]
    assert unknown(GenerationConfig(no_repeat_ngram_size=2).to_dict()) == ["no_repeat_ngram_size"]
    assert unknown(GenerationConfig(suppress_tokens=[3]).to_dict()) == ["suppress_tokens"]
    assert unknown({"invented": 5}) == ["invented"]
