"""Input that makes little sense: an optimized model answers or refuses as stock does."""

from __future__ import annotations

import pytest
import torch
from models import CAUSAL, DECODERS, LIMIT, VOCABULARY, optimized, prompt, stock
from same import assert_both, generate, outcome

pytestmark = pytest.mark.usefixtures("one_thread")
EMPTY = dict(input_ids=torch.zeros(1, 0, dtype=torch.long), attention_mask=None)
LONG = torch.randint(5, VOCABULARY, (1, LIMIT + 6), generator=torch.Generator().manual_seed(0))
ZEROS = torch.zeros(3, 11, dtype=torch.long)
HOLE = prompt("Llama")["attention_mask"].index_fill(1, torch.tensor([9]), 0)

# name: (what generate() is given, whether stock refuses; None where that depends on the architecture)
CASES = {
    "an empty prompt": (EMPTY, None),
    "no prompt": (dict(input_ids=None, attention_mask=None), False),
    "no new tokens": (dict(max_new_tokens=0), None),
    "fewer than none": (dict(max_new_tokens=-1), None),
    "longer than the limit": (dict(input_ids=LONG, attention_mask=None), None),
    "longer than max_length": (dict(max_length=5, max_new_tokens=None), None),
    "a token below zero": (dict(input_ids=torch.tensor([[5, -1, 7]]), attention_mask=None), None),
    "a token beyond the vocabulary": (dict(input_ids=torch.tensor([[5, 999, 7]]), attention_mask=None), True),
    "tokens that are no integers": (dict(input_ids=torch.rand(1, 4), attention_mask=None), True),
    "one dimension": (dict(input_ids=torch.tensor([5, 6, 7]), attention_mask=None), None),
    "three dimensions": (dict(input_ids=torch.full((1, 2, 3), 5), attention_mask=None), None),
    "a mask of another length": (dict(attention_mask=torch.ones(3, 4, dtype=torch.long)), None),
    "a mask that hides all": (dict(attention_mask=ZEROS), None),
    "a mask with a hole": (dict(attention_mask=HOLE), False),
    "padding on the right": (dict(attention_mask=prompt("Llama")["attention_mask"].flip(1)), False),
    "a mask of booleans": (dict(attention_mask=prompt("Llama")["attention_mask"].bool()), False),
    "a mask of floats": (dict(attention_mask=prompt("Llama")["attention_mask"].float()), None),
    "padding without a mask": (dict(attention_mask=None), False),
    "no beams": (dict(num_beams=0), True),
    "more results than beams": (dict(num_beams=2, num_return_sequences=3), True),
    "temperature of zero": (dict(do_sample=True, temperature=0.0), True),
    "an argument that there is not": (dict(no_such_argument=1), True),
    "a cache that there is not": (dict(cache_implementation="none"), True),
    "a cache that is none": (dict(past_key_values=((1, 2),)), True),
    "a streamer for beams": (dict(streamer=object(), num_beams=2), True),
}


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("case", CASES)
def test_case(name, case):
    given, refused = CASES[case]
    result = assert_both(name, lambda model: outcome(lambda each: generate(each, name, **given), model))
    assert refused is None or isinstance(result, str) == refused


@pytest.mark.parametrize("name", list(CAUSAL))
@pytest.mark.parametrize("case", ["longer than the limit", "a mask with a hole", "no new tokens"])
def test_case_of_every_architecture(name, case):
    given, _ = CASES[case]
    assert_both(name, lambda model: outcome(lambda each: generate(each, name, **given), model))


@pytest.mark.parametrize("name", ["T5", "BART"])
@pytest.mark.parametrize(
    "case", ["an empty prompt", "no new tokens", "longer than the limit", "a mask that hides all"]
)
def test_case_with_an_encoder(name, case):
    given, _ = CASES[case]
    assert_both(name, lambda model: outcome(lambda each: generate(each, name, **given), model))


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize(
    "given",
    [
        dict(input_ids=torch.zeros(0, 4, dtype=torch.long)),
        dict(input_ids=torch.zeros(2, 0, dtype=torch.long)),
        dict(),
        dict(input_ids=torch.tensor([[5, 6]]), inputs_embeds=torch.zeros(1, 2, 128)),
        dict(inputs_embeds=torch.zeros(1, 2, 63)),
        dict(input_ids=torch.tensor([[5, 6]]), position_ids=torch.tensor([[3, 1]])),
        dict(input_ids=torch.tensor([[5, 6]]), past_key_values="a cache"),
        dict(input_ids=torch.tensor([[5, 6]], dtype=torch.int32)),
    ],
    ids=lambda given: ", ".join(
        f"{key} {tuple(getattr(value, 'shape', ()))}" for key, value in given.items()
    ),
)
def test_one_forward(name, given):
    """Without generate() in front of it."""

    def use(model):
        with torch.no_grad():
            return model(**given).logits

    assert_both(name, lambda model: outcome(use, model))


@pytest.mark.parametrize("name", DECODERS)
def test_after_an_error(name):
    """What a refused call has left does not change the next one."""
    expected = generate(stock(name), name)
    for case in ("a token beyond the vocabulary", "a mask of another length"):
        outcome(lambda each: generate(each, name, **CASES[case][0]), optimized(name))  # noqa: B023
        assert generate(optimized(name), name).equal(expected)
