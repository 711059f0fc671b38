"""The kinds of work on tiny models: what is computed, and that the engine computes the same."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hfaccel.bench import cases, limits, scripts, subjects, tasks
from hfaccel.bench.answers import judge
from hfaccel.bench.sampling import Task, sample, warm_up
from hfaccel.bench.setting import Setting
from hfaccel.bench.work import Generation, Pipeline, Script, Shapes, Texts, describe
from hfaccel.engine import kernels_problem
from hfaccel.errors import HfaccelError, UsageError

TINY, DECODER = "random:tiny", "random:tiny-decoder"
STOCK, TORCH = Setting(), Setting("torch", huge_pages="auto")


@pytest.mark.parametrize(
    "work",
    [Shapes(2, 8), Texts("docstrings", 6, 4), Pipeline("docstrings", 4, 2)],
    ids=lambda work: work.kind,
)
def test_the_engine_answers_as_transformers_do(work):
    base, fast = (tasks.make(TINY, setting, work) for setting in (STOCK, TORCH))
    assert base.call() == fast.call() == {}
    assert judge(base.answers(), fast.answers(), "fp32").problem == ""
    assert base.answers().size > 0 and np.abs(base.answers()).max() > 0


def test_shapes_count_the_products_of_the_stock_model():
    counted = tasks.make(TINY, STOCK, Shapes(2, 8)).flops()
    width, tokens = 64, 2 * 8
    linear = 2 * tokens * (4 * width * width + 2 * 4 * width * width)
    assert linear <= counted <= 1.2 * linear


def test_sorted_batches_have_less_padding_and_the_same_answers():
    plain = tasks.make(TINY, STOCK, Texts("docstrings", 12, 4))
    sorted_ones = tasks.make(TINY, Setting(token_budget=300), Texts("docstrings", 12, 4))
    assert plain.facts["tokens"] == sorted_ones.facts["tokens"]
    assert plain.facts["tokens"] <= sorted_ones.facts["padded_tokens"] < plain.facts["padded_tokens"]
    assert judge(plain.answers(), sorted_ones.answers(), "fp32").problem == ""


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(1, 8), st.none() | st.integers(1, 200))
def test_batches_have_every_text_once_and_keep_their_bound(lengths, size, budget):
    found = list(tasks.batches(lengths, size, budget))
    assert sorted(place for part in found for place in part) == list(range(len(lengths)))
    for part in found:
        if budget is None:
            assert len(part) <= size
        else:
            assert len(part) == 1 or len(part) * max(lengths[place] for place in part) <= budget


def test_generation_is_timed_token_by_token_and_no_token_lies_behind():
    work = Generation(6, 5, 2)
    task = tasks.make(DECODER, STOCK, work)
    figures = task.call()
    assert set(figures) == {"first_token", "per_token"} and min(figures.values()) > 0
    assert set(tasks.make(DECODER, STOCK, Generation(6, 1)).call()) == {"first_token"}
    model = subjects.load(DECODER)
    prompt = subjects.tokens(model.config, 2, 6)
    answers = torch.from_numpy(task.answers())
    assert answers.shape == (2, 11) and torch.equal(answers[:, :6], prompt)
    assert subjects.regret(model, prompt, answers, work) < 1e-4
    answers[:, -1] = (answers[:, -1] + 1) % 1000
    assert subjects.regret(model, prompt, answers, work) > 0.1


def test_a_setting_that_changes_nothing_is_skipped_with_the_reason(tmp_path):
    """onnxruntime has no weight-only precision: the side would be the stock model."""
    setting = Setting("onnxruntime", "int4-weight-only").to_dict()
    take = cases.measure(TINY, setting, describe(Shapes(1, 4)), str(tmp_path / "a.npy"), 0.01)
    assert "int4-weight-only" in take()["skipped"]


def test_a_sample_has_what_a_cell_needs(tmp_path):
    file = tmp_path / "a.npy"
    take = cases.measure(TINY, STOCK.to_dict(), describe(Shapes(1, 4)), str(file), 0.001)
    found = take()
    assert len(found["calls"]) >= 3 and found["seconds"] == np.median(found["calls"])
    assert found["threads"] == torch.get_num_threads() and found["peak_memory_mib"] > 10
    assert found["page_faults"] >= 0 and found["flops"] > 0 and found["warm_up"]["calls"] >= 1
    assert np.load(file).shape == (1, 4, 64)


def test_calls_are_repeated_until_they_are_warm_or_time_is_up():
    calls = []

    def call():
        calls.append(0)
        return {"first_token": 0.5}

    found = warm_up(Task(call), 10.0)
    assert found["calls"] == len(calls) >= 6 and found["ended"]
    assert warm_up(Task(call), 1e-9)["calls"] == 1
    taken = sample(Task(call, least_calls=4, at_once=2), 0.0)
    assert taken["first_token"] == [0.5] * 4
    assert taken["seconds"] == pytest.approx(np.median(taken["calls"]) / 2)


# Subjects


@pytest.mark.parametrize(("subject", "kind"), [(TINY, "encoder"), (DECODER, "decoder")])
def test_a_model_is_described_without_its_weights(subject, kind):
    found = cases.describe(subject, ["torch", "onnxruntime"])()
    weights = sum(weight.numel() for weight in subjects.load(subject).parameters()) * 4 / 2**20
    assert (found["kind"], found["backends"]["torch"]) == (kind, "")
    assert found["weights_mib"] == pytest.approx(weights) and found["longest"] >= 512


def test_every_process_has_the_same_weights_and_tokens():
    one, two = (subjects.load(TINY).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    config = subjects.config_of(TINY)
    ids = subjects.tokens(config, 3, 5)
    assert torch.equal(ids, subjects.tokens(config, 3, 5))
    assert ids.min() >= 1000 and ids.max() < config.vocab_size


def test_a_saved_model_is_a_subject(tmp_path):
    subjects.load(TINY).save_pretrained(tmp_path)
    config = subjects.config_of(str(tmp_path))
    assert subjects.kind_of(config) == "encoder" and subjects.longest_of(config) == 512
    assert torch.equal(*(subjects.load(name).pooler.dense.weight for name in (TINY, str(tmp_path))))


def test_images_are_no_token_ids():
    from transformers import ViTConfig

    assert subjects.kind_of(ViTConfig(architectures=["ViTModel"])) == "other"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="the backend must be auto or one of torch"):
        cases.describe(TINY, ["nonsense"])


def test_texts_come_from_a_file(tmp_path):
    file = tmp_path / "texts"
    file.write_text("one\n\n two \nthree\n")
    assert subjects.texts_of(str(file), 2) == ["one", "two"]
    with pytest.raises(UsageError, match="`texts <= 3` must hold"):
        subjects.texts_of(str(file), 4)
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UsageError, match="must be readable UTF-8"):
        subjects.texts_of(str(file), 1)


def test_numbers_of_a_pipeline_are_in_order():
    results = [{"score": 0.5, "label": "a", "more": [1, {"x": 2.0}]}, [np.float32(3)]]
    assert list(tasks.numbers(results)) == [1.0, 2.0, 0.5, 3.0]


# Scripts and limits


def test_a_stock_script_is_plain_python_and_hfaccels_is_optimized():
    work = Script(("a.py", "--epochs", "3"))
    assert scripts.command_of(STOCK, work) == [sys.executable, "a.py", "--epochs", "3"]
    plain = scripts.command_of(Setting("torch"), work)
    assert plain[1:3] == ["-m", "hfaccel.commands.run"] and "--optimize" in plain
    assert plain[3:5] == ["--memory-allocator", "default"]
    several = scripts.command_of(Setting("eager", allocator="glibc", instances=2), work)
    assert "--optimize" not in several and "--ninstances" in several and "--instance-idx" not in several


def test_a_script_that_fails_says_its_last_line(tmp_path):
    file = tmp_path / "a.py"
    file.write_text("import sys; print('noise', file=sys.stderr); sys.exit('no such file')")
    with pytest.raises(HfaccelError, match="the script ended with exit code 1: no such file"):
        scripts.run([sys.executable, str(file)])


def test_the_limits_are_measured_in_each_precision():
    found = limits.measure(size=256, rows=64, read=1 << 20)()["limits"]
    assert set(found["gemm_gflops"]) == {"fp32", "bf16", "int8"}
    assert found["gemm_gflops"]["fp32"] > 0 and found["bandwidth_gb_s"] > 0
    assert kernels_problem() or found["gemm_gflops"]["int8"] > 0
