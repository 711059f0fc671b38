"""Every task gives what transformers gives, for lists, generators and data sets, whatever the batch size."""

from __future__ import annotations

import functools

import pytest
import tiny
import torch
from tiny import one_thread  # noqa: F401 - a fixture
from torch.utils.data import Dataset

import hfaccel
from hfaccel.pipelines.call import shape
from hfaccel.pipelines.wrap import Scheduled

pytestmark = pytest.mark.usefixtures("one_thread")

PADDED = {"feature_extraction"}  # transformers appends rows of padding to its batches; see docs/pipelines.md


@functools.cache
def case(name):
    made = tiny.CASES[name]()
    return made, hfaccel.optimize(made.pipe)


@functools.cache
def expected(name, batch_size=1):
    made, _ = case(name)
    return list(made.pipe(made.inputs, batch_size=batch_size, **made.call))


class Inputs(Dataset):
    def __init__(self, values):
        self.values = values

    def __len__(self):
        return len(self.values)

    def __getitem__(self, number):
        if number >= len(self.values):
            raise IndexError(number)
        return self.values[number]


@pytest.mark.parametrize("batch_size", [None, 2, 7])
@pytest.mark.parametrize("name", tiny.CASES)
def test_results_are_those_of_transformers(name, batch_size):
    made, fast = case(name)
    got = fast(made.inputs, batch_size=batch_size, **made.call)
    assert isinstance(got, list) and isinstance(fast, Scheduled)
    tiny.assert_same(got, expected(name, 1 if name in PADDED else batch_size or 1))


@pytest.mark.parametrize("name", tiny.CASES)
def test_streams_give_the_same(name):
    made, fast = case(name)
    batch_size = 1 if name in PADDED else 3
    for stream in (Inputs(made.inputs), (value for value in made.inputs)):
        results = fast(stream, batch_size=3, **made.call)
        assert not isinstance(results, list)
        tiny.assert_same(list(results), expected(name, batch_size))


@pytest.mark.parametrize("name", tiny.CASES)
def test_one_input_gives_what_it_gave(name):
    made, fast = case(name)
    tiny.assert_same(fast(made.inputs[1], **made.call), made.pipe(made.inputs[1], **made.call))


def test_a_data_set_can_be_read_twice():
    made, fast = case("text_classification")
    results = fast(Inputs(made.inputs), batch_size=4, **made.call)
    assert len(results) == len(made.inputs)
    tiny.assert_same(list(results), list(results))


def test_tensors_keep_their_type():
    made, fast = case("feature_extraction")
    got = fast(made.inputs, batch_size=5, return_tensors=True)
    tiny.assert_same(got, made.pipe(made.inputs, return_tensors=True))


def test_left_padding_is_cut_off_too():
    pipe = tiny.text_pipe("feature-extraction", "BertModel")
    pipe.tokenizer.padding_side = "left"
    texts = ["the cat sat on the mat", "dog"]
    wide, narrow = pipe(texts, batch_size=2, return_tensors=True)
    expected = [wide, narrow[:, -len(pipe.tokenizer("dog")["input_ids"]) :]]
    tiny.assert_same(hfaccel.optimize(pipe)(texts, batch_size=2, return_tensors=True), expected)


def test_padding_asked_for_is_kept():
    made, fast = case("feature_extraction")
    settings = {"padding": "max_length", "max_length": 50}
    got = fast(made.inputs, batch_size=4, tokenize_kwargs=settings, return_tensors=True)
    assert {one.shape[1] for one in got} == {50}
    tiny.assert_same(got, made.pipe(made.inputs, tokenize_kwargs=settings, return_tensors=True))


def test_texts_of_near_length_share_a_batch():
    fast = hfaccel.optimize(tiny.text_pipe("text-classification", "BertForSequenceClassification"))
    shapes, forward = [], fast.model.forward
    fast.model.forward = functools.wraps(forward)(
        lambda **given: shapes.append(tuple(given["input_ids"].shape)) or forward(**given)
    )
    texts = tiny.texts(200)
    list(fast(texts, batch_size=8))
    computed = sum(rows * length for rows, length in shapes)
    needed = sum(len(ids) for ids in fast.tokenizer(texts)["input_ids"])
    assert max(rows for rows, _ in shapes) == 8
    assert computed < 1.15 * needed  # in the order of the list it would be 1.8 times


def test_batches_keep_to_the_token_budget():
    fast = hfaccel.optimize(tiny.text_pipe("text-classification", "BertForSequenceClassification"))
    fast.hfaccel_tokens = 60
    shapes, forward = [], fast.model.forward
    fast.model.forward = functools.wraps(forward)(
        lambda **given: shapes.append(tuple(given["input_ids"].shape)) or forward(**given)
    )
    assert len(fast(tiny.texts(50), batch_size=50)) == 50
    assert all(rows == 1 or rows * length <= 60 for rows, length in shapes)
    assert any(rows > 1 for rows, _ in shapes)


def test_images_and_sounds_keep_transformers_batches():
    made, fast = case("image_classification")
    rows, forward = [], fast.model.forward
    fast.model.forward = functools.wraps(forward)(
        lambda **given: rows.append(len(given["pixel_values"])) or forward(**given)
    )
    fast(made.inputs, batch_size=3)
    del fast.model.forward
    assert rows == [3, 3, 1]


def row(**others):
    return {"input_ids": torch.ones(1, 5), "attention_mask": torch.ones(1, 5), **others}


def test_only_token_sequences_with_a_mask_are_free():
    assert shape(row()).length == 5 and shape(row(bbox=torch.ones(1, 5, 4), sentence="a")).length == 5
    assert shape(row()).keys != shape(row(bbox=torch.ones(1, 5, 4))).keys
    for fixed in (
        row(pixel_values=torch.ones(1, 3, 8, 8)),  # its own rule of padding, or none
        row(stride=torch.ones(1)),
        row(attention_mask=None),
        row(input_ids=torch.ones(2, 5)),
        {"input_ids": torch.ones(1, 5)},
        torch.ones(1, 5),
        [row()],
    ):
        assert shape(fixed).length is None
