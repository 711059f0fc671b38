"""An optimized pipeline is its class, copies and saves as it does, fails as it does, and reports itself."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import tiny
import torch
from conftest import at_once, needs_kernels
from tiny import one_thread  # noqa: F401 - a fixture
from torch.utils.data import IterableDataset
from transformers import TextClassificationPipeline, pipeline

import hfaccel
from hfaccel.pipelines.wrap import Scheduled, unwrap, wrap

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stock():
    return tiny.text_pipe("text-classification", "BertForSequenceClassification")


@pytest.fixture(scope="module")
def fast(stock):
    return hfaccel.optimize(stock)


TEXTS = tiny.texts(9)


def test_it_is_still_its_class(stock, fast):
    assert isinstance(fast, type(stock)) and isinstance(fast, Scheduled)
    assert type(fast).__name__ == type(stock).__name__ and repr(fast) == repr(stock)
    assert type(stock) is TextClassificationPipeline and not isinstance(stock, Scheduled)
    assert type(wrap(copy.copy(stock))) is type(fast)


def test_pipeline_wrapping_twice_is_wrapping_once(fast):
    assert hfaccel.optimize(fast) is fast
    assert type(wrap(fast)).__mro__.count(Scheduled) == 1


def test_unwrapping_gives_the_class_back(stock):
    pipe = wrap(copy.copy(stock))
    assert type(unwrap(pipe)) is type(stock) and vars(pipe).keys() == vars(stock).keys()


def test_a_pipeline_around_an_optimized_model_gets_the_loop(stock):
    pipe = copy.copy(stock)
    pipe.model = hfaccel.optimize(stock.model)
    assert isinstance(hfaccel.optimize(pipe), Scheduled) and not isinstance(pipe, Scheduled)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))])
def test_copies_work(fast, way):
    other = way(fast)
    assert type(other) is type(fast)
    tiny.assert_same(other(TEXTS, batch_size=4), fast(TEXTS, batch_size=4))


def test_saving_saves_what_the_stock_pipeline_saves(stock, fast, tmp_path):
    stock.save_pretrained(tmp_path / "stock")
    fast.save_pretrained(tmp_path / "fast")
    names = [sorted(path.name for path in (tmp_path / side).iterdir()) for side in ("stock", "fast")]
    assert names[0] == names[1]
    loaded = pipeline("text-classification", str(tmp_path / "fast"), device="cpu")
    tiny.assert_same(loaded(TEXTS), stock(TEXTS))


def test_saving_saves_the_code_of_a_registered_pipeline(stock, tmp_path):
    class Registered(TextClassificationPipeline):
        _registered_impl = {}

    Registered._registered_impl["mine"] = {"impl": Registered, "pt": (), "default": {}, "type": "text"}
    model = tiny.bert("BertForSequenceClassification")
    pipe = Registered(task="mine", model=model, tokenizer=stock.tokenizer, device=torch.device("cpu"))
    hfaccel.optimize(pipe).save_pretrained(tmp_path)
    assert "test_pipeline_wrap.Registered" in (tmp_path / "config.json").read_text()
    assert (tmp_path / "test_pipeline_wrap.py").exists()


def test_the_function_makes_the_same_pipeline(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    made = hfaccel.pipeline("text-classification", str(tmp_path), top_k=2, batch_size=4)
    assert isinstance(made, Scheduled) and made.device.type == "cpu"
    tiny.assert_same(made(TEXTS), stock(TEXTS, top_k=2))
    assert hfaccel.report(made).outcomes


@needs_kernels
def test_the_function_leaves_a_given_model_alone(stock):
    model = tiny.bert("BertForSequenceClassification")
    classes = [type(part) for part in model.modules() if type(part).__name__ == "BertLayer"]
    made = hfaccel.pipeline("text-classification", model, tokenizer=stock.tokenizer)
    assert made.model is not model
    assert [type(part) for part in model.modules() if type(part).__name__ == "BertLayer"] == classes


def test_progress_is_shown_on_request(fast, capsys):
    fast(TEXTS)
    assert "input" not in capsys.readouterr().err
    assert len(fast(TEXTS, batch_size=2, progress=True)) == 9
    assert "9/9" in capsys.readouterr().err
    assert len(list(fast((text for text in TEXTS), batch_size=2, progress=True))) == 9
    assert "9input" in capsys.readouterr().err
    made = copy.copy(fast)
    made.hfaccel_progress = True
    made(TEXTS)
    assert "9/9" in capsys.readouterr().err
    made(TEXTS, progress=False)
    assert not capsys.readouterr().err


def test_the_report_tells_about_the_loop(fast):
    lines = [o for o in hfaccel.report(fast).outcomes if o.subject == "pipeline text-classification"]
    assert [line.applied for line in lines] == [True]


def test_sampling_keeps_its_loop_and_says_so():
    made = hfaccel.optimize(tiny.text_generation().pipe)
    made(["the cat", "a dog"], max_new_tokens=2, do_sample=True)
    report = hfaccel.report(made)
    assert ("pipeline text-generation", True) in [(o.subject, o.applied) for o in report.outcomes]
    assert report.stock_calls["do_sample=True: tokens are drawn at random"] == 1


def test_worker_processes_are_transformers_own(fast):
    made = copy.copy(fast)
    results = made(TEXTS, batch_size=3, num_workers=1)
    tiny.assert_same(results, fast(TEXTS, batch_size=3))
    assert hfaccel.report(made).stock_calls == {"num_workers=1 asks for transformers' worker processes": 1}


def test_a_pipeline_of_the_program_keeps_its_loop(stock):
    class Mine(TextClassificationPipeline):
        def postprocess(self, outputs, **settings):
            return threading.get_ident()

    parts = {"model": stock.model, "tokenizer": stock.tokenizer, "device": torch.device("cpu")}
    pipe = Mine(task="text-classification", **parts)
    made = hfaccel.optimize(pipe)
    assert made(TEXTS, batch_size=2) == [threading.get_ident()] * 9
    assert "postprocess is the program's own" in str(hfaccel.report(made).to_dict())


def test_nested_lists_are_plain_lists_that_the_collector_skips():
    import gc

    made = hfaccel.optimize(tiny.text_pipe("feature-extraction", "BertModel"))
    (result,) = made(["the cat sat"])
    assert type(result) is type(result[0]) is type(result[0][0]) is list
    assert type(result[0][0][0]) is float
    assert not gc.is_tracked(result[0][0])
    result[0][0].append("still a list")


def test_an_input_of_several_rows_needs_batch_size_one():
    pipe = tiny.text_pipe("feature-extraction", "BertModel")
    made, given = hfaccel.optimize(pipe), [["the cat", "a dog"], ["a dog", "the cat"]]
    tiny.assert_same(made(given), pipe(given))
    with pytest.raises(ValueError, match="gave 2; call the pipeline with batch_size=1"):
        made(given, batch_size=8)


# Streams


def test_a_stream_may_depend_on_the_results(fast):
    answers = []

    def questions():
        for number in range(5):
            assert len(answers) == number
            yield TEXTS[number]

    for answer in fast(questions()):
        answers.append(answer)
    assert len(answers) == 5


def test_a_stream_that_was_left_goes_on_where_it_was(fast):
    results, got = fast((text for text in TEXTS), batch_size=3), []
    for result in results:
        got.append(result)
        if len(got) == 2:
            break
    tiny.assert_same(got + list(results), fast(TEXTS))
    assert list(results) == []


def test_a_data_set_without_a_length_is_streamed(fast):
    class Endless(IterableDataset):
        def __iter__(self):
            while True:
                yield from TEXTS

    results = iter(fast(Endless(), batch_size=3))
    tiny.assert_same([next(results) for _ in range(9)], fast(TEXTS))


@pytest.mark.parametrize("batch_size", [1, 8, 32])
def test_a_generator_that_fails_at_item_100_has_given_99_results(fast, batch_size):
    def failing():
        yield from (TEXTS * 11)[:99]
        raise KeyError("item 100")

    results, given = fast(failing(), batch_size=batch_size), []
    with pytest.raises(KeyError, match="item 100"):
        for result in results:
            given.append(result)
    tiny.assert_same(given, (fast(TEXTS) * 11)[:99])


def test_a_bad_input_is_raised_in_its_place_and_the_rest_follows(fast):
    class Data(torch.utils.data.Dataset):
        def __len__(self):
            return 9

        def __getitem__(self, number):
            return None if number == 5 else TEXTS[number]

    results, outcomes = iter(fast(Data(), batch_size=4)), []
    for _ in range(9):
        try:
            outcomes.append(next(results))
        except ValueError:
            outcomes.append(None)
    with pytest.raises(StopIteration):
        next(results)
    tiny.assert_same(outcomes[:5] + outcomes[6:], fast(TEXTS[:5] + TEXTS[6:]))
    assert outcomes[5] is None


class Panic(BaseException):
    """As pyo3_runtime.PanicException is: no Exception."""


class Texts(torch.utils.data.Dataset):
    def __init__(self, given):
        self.given = given

    def __len__(self):
        return len(self.given)

    def __getitem__(self, number):
        return self.given[number]


@pytest.mark.parametrize("batch_size", [1, 8])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("step", ["preprocess", "_forward"])
def test_an_error_that_is_no_exception_stands_in_its_place(fast, monkeypatch, batch_size, streams, step):
    """A tokenizer in Rust that panics, for one. Whatever else was computed is given."""
    given = [text.replace("fox", "dog") for text in (TEXTS * 7)[:60]]
    expected = fast(given)
    given[40], original = "fox", getattr(fast, step)
    fox = fast.tokenizer.convert_tokens_to_ids("fox")

    def panicking(first, **settings):
        if first == "fox" if step == "preprocess" else (first["input_ids"] == fox).any():
            raise Panic
        return original(first, **settings)

    monkeypatch.setattr(fast, step, panicking)
    inputs = (text for text in given) if streams else Texts(given)
    results, outcomes = iter(fast(inputs, batch_size=batch_size)), []
    for _ in range(60):
        try:
            outcomes.append(next(results))
        except Panic:
            outcomes.append(None)
    with pytest.raises(StopIteration):
        next(results)
    assert [number for number, result in enumerate(outcomes) if result is None] == [40]
    tiny.assert_same(outcomes[:40] + outcomes[41:], expected[:40] + expected[41:])


def test_the_tokenizer_is_free_between_results(fast):
    for result in fast((text for text in TEXTS * 10), batch_size=4):
        assert fast.tokenizer("the cat", truncation=True, max_length=3)["input_ids"] and result


# Bad input


LONG = "the cat " * 12_500  # 100,000 characters

BAD = {
    "None in a list": ([*TEXTS, None], {}),
    "bytes": ([b"\xff\xfe", "a"], {}),
    "a number": ([1, 2], {}),
    "a list of lists": ([["a", "b", "c"], "a"], {}),
    "too long": ([*TEXTS, LONG], {}),
    "nothing": ([], {}),
    "batches of none": (TEXTS, {"batch_size": 0}),
    "negative batches": (TEXTS, {"batch_size": -2}),
    "unknown argument": (TEXTS, {"no_such_argument": object()}),
    "one None": (None, {}),
    "a set": ({"a", "b"}, {}),
}


def outcome(pipe, given, settings):
    try:
        return pipe(given, **settings)
    except Exception as error:  # noqa: BLE001 - compared
        return type(error), str(error)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", BAD)
def test_exceptions_are_those_of_transformers(stock, fast, name, batch_size):
    """Those of the input alone: in a batch of transformers' the other inputs' shapes are in the message."""
    given, settings = BAD[name]
    got = outcome(fast, given, {"batch_size": batch_size, **settings})
    tiny.assert_same(got, outcome(stock, given, {"batch_size": 1, **settings}))


@pytest.mark.parametrize("texts", [["", *TEXTS], [LONG, "a"], ["\x00\ud7ff\U0010ffff", " \n\t "]])
def test_odd_texts_give_what_they_gave(stock, fast, texts):
    settings = {"truncation": True, "max_length": 60}
    tiny.assert_same(fast(texts, batch_size=4, **settings), stock(texts, **settings))


def test_without_a_padding_token_the_error_is_transformers(fast):
    pipe = copy.copy(fast)
    pipe.tokenizer = tiny.tokenizer(pad_token=None)
    assert len(pipe(TEXTS)) == 9
    with pytest.raises(ValueError, match="without pad_token cannot do batching"):
        pipe(TEXTS, batch_size=2)


def test_a_model_without_a_tokenizer_is_refused_as_before():
    model = tiny.bert("BertForSequenceClassification")
    with pytest.raises(Exception) as expected:
        pipeline("text-classification", model, device="cpu")
    with pytest.raises(type(expected.value)) as got:
        hfaccel.pipeline("text-classification", model)
    assert str(got.value) == str(expected.value)


def test_threads_can_share_a_pipeline(fast):
    expected = fast(TEXTS)
    for results in at_once(3, lambda _: fast(TEXTS * 4, batch_size=3)):
        tiny.assert_same(results, expected * 4)


def test_inference_mode_of_the_program_is_kept(fast):
    with torch.inference_mode():
        tiny.assert_same(fast(TEXTS, batch_size=2), fast(TEXTS))
