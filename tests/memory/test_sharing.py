"""share(): one copy of the weights for many processes, which cannot harm each other."""

from __future__ import annotations

import copy
import fcntl
import gc
import json
import os
import pickle
import subprocess
import sys
import textwrap
import weakref
from multiprocessing import resource_sharer
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_bert, states
from torch import nn

import hfaccel
from hfaccel.errors import ModelError
from hfaccel.launcher import instances
from hfaccel.memory import meeting, share, shared
from hfaccel.memory.pack import held

WORKERS = Path(__file__).with_name("sharing_workers.py")
PRECISIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "int8": {"quantization": "int8"}}
# A pickle carries dense values, which are packed, and in int8 rounded, again.
REPACKED = {"float32": 1e-6, "bfloat16": 1e-6, "int8": 1e-6}
METHODS = ["fork", "forkserver", "spawn"]


# Real workers


@pytest.fixture(scope="module")
def seen():
    done = subprocess.run(
        [sys.executable, str(WORKERS)],
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def each(seen):
    for precision, found in seen.items():
        for method, workers in found["workers"].items():
            yield precision, method, found, workers


def test_all_precisions_and_ways_to_start_were_seen(seen):
    assert set(seen) == set(PRECISIONS)
    assert {method for _, method, _, _ in each(seen)} == set(METHODS)
    assert all(found["line"]["applied"] for found in seen.values())


def test_eight_workers_have_one_copy(seen):
    for precision, method, found, workers in each(seen):
        copies = sum(pss for _, pss, *_ in workers) / found["nbytes"]
        assert 0.4 < copies <= 1.05, (precision, method)


def test_every_worker_computes_the_same(seen):
    for precision, method, found, workers in each(seen):
        assert found["after"] == found["expected"] == found["own"]
        assert {first for first, *_ in workers} == {found["expected"]}, (precision, method)


def test_a_change_in_one_worker_is_seen_by_no_other(seen):
    for precision, method, found, workers in each(seen):
        changed = [after for _, _, after, *_ in workers if after is not None]
        assert len(changed) == 1 and changed[0] != found["expected"], (precision, method)
        others = [last for _, _, after, last, *_ in workers if after is None]
        assert set(others) <= {found["expected"]} and len(others) == len(workers) - 1


def test_nobody_can_change_the_memory(seen):
    for *_, workers in each(seen):
        assert all(refusals == ["EPERM", "EPERM", "EPERM"] for *_, refusals, _ in workers)


# Sending


def sent(model):
    """As a queue or pipe of multiprocessing does it, there and back."""
    try:
        return pickle.loads(ForkingPickler.dumps(model))
    finally:
        resource_sharer.stop()


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_sent_model_is_equal_and_over_the_same_memory(precision, bert, batch):
    fast = share(hfaccel.optimize(bert, **PRECISIONS[precision]))
    got = sent(fast)
    assert torch.equal(states(got, batch), states(fast, batch))
    assert [type(module) for module in got.modules()] == [type(module) for module in fast.modules()]
    assert "sealed memory of another process" in str(hfaccel.report(got).outcomes)
    assert len(ForkingPickler.dumps(fast)) < 200_000
    low, size = shared(got).address, shared(got).nbytes
    for tensor in (*got.parameters(), *got.buffers()):
        assert low <= held(tensor).data_ptr() < low + size
    again = sent(got)  # and passed on
    assert torch.equal(states(again, batch), states(fast, batch))


@pytest.mark.parametrize("part", ["encoder.layer.0.output.dense", "embeddings.LayerNorm"])
def test_what_was_changed_since_is_sent_by_value(part, bert, batch):
    fast = share(hfaccel.optimize(bert))
    with torch.no_grad():
        fast.get_submodule(part).weight.mul_(1.5)
        fast.get_submodule(part).bias.data.add_(0.5)
    assert torch.equal(states(sent(fast), batch), states(fast, batch))


def test_ties_stay_ties():
    model = nn.ModuleDict({"a": nn.Linear(80, 80), "b": nn.Linear(80, 80)})
    model["b"].weight = model["a"].weight
    got = sent(share(model.eval()))
    assert got["a"].weight is got["b"].weight
    assert torch.equal(got["a"].weight, model["a"].weight)
    assert got["a"].weight.requires_grad and isinstance(got["a"].weight, nn.Parameter)


def test_a_model_that_is_not_shared_is_sent_as_ever(bert):
    share(make_bert())  # of the same class
    got = sent(bert)
    assert shared(got) is None
    assert torch.equal(got.embeddings.word_embeddings.weight, bert.embeddings.word_embeddings.weight)


# What stays as it was


def descriptors():
    """Numbers of what is open; the one that lists them is closed again by then."""
    return {number for number in range(1000) if Path(f"/proc/self/fd/{number}").is_symlink()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_copies_pickles_and_checkpoints_are_as_before(precision, bert, batch):
    fast = hfaccel.optimize(bert, **PRECISIONS[precision])
    expected = states(fast, batch)
    saved = {name: value.clone() for name, value in fast.state_dict().items()}
    parameters = dict(fast.named_parameters())
    assert share(fast) is fast
    assert all(parameters[name] is parameter for name, parameter in fast.named_parameters())
    for name, value in fast.state_dict().items():
        assert torch.equal(value, saved[name])
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert shared(other) is None
        assert torch.allclose(states(other, batch), expected, atol=REPACKED[precision])
    assert torch.equal(states(fast, batch), expected)
    assert not hfaccel.report(fast).stock_calls
    restored = hfaccel.restore(fast)
    if precision == "float32":
        torch.testing.assert_close(states(restored, batch), expected, rtol=0, atol=1e-5)


def test_the_old_memory_and_the_descriptor_go():
    before = descriptors()
    model = nn.Linear(1024, 1024)
    array = np.ones((1024, 1024), np.float32)
    model.weight.data = torch.from_numpy(array)
    old = weakref.ref(array)
    del array
    share(model)
    gc.collect()
    assert old() is None
    share(model)  # what was shared before goes, too
    assert len(descriptors() - before) == 1
    del model
    gc.collect()
    assert descriptors() == before


def test_a_plain_model_and_a_pipeline_can_be_shared(minilm_path):
    from transformers import pipeline

    pipe = pipeline("feature-extraction", minilm_path)
    expected = pipe("a text")
    assert share(pipe) is pipe and shared(pipe.model).outcome.applied
    assert pipe("a text") == expected


# What the system refuses


def test_without_memfd_the_model_stays_and_the_report_says_why(bert, batch, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    fast = hfaccel.optimize(bert)
    expected = states(fast, batch)
    monkeypatch.setattr(os, "memfd_create", refuse)
    share(fast)
    line = hfaccel.report(fast).outcomes[-1]
    assert not line.applied and "Operation not permitted" in line.reason
    assert torch.equal(states(fast, batch), expected)
    assert shared(sent(fast)) is None


def test_where_seals_fail_nothing_is_left_open(monkeypatch):
    def refuse(*_):
        raise OSError(16, "Device or resource busy")

    before = descriptors()
    model = nn.Linear(64, 64)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    share(model)
    assert "busy" in shared(model).outcome.reason
    assert descriptors() == before


@pytest.mark.parametrize("thing", [None, 3, torch.ones(2), object()])
def test_only_models_are_shared(thing):
    with pytest.raises(ModelError, match=r"a torch.nn.Module or a transformers pipeline is expected"):
        share(thing)


def test_a_model_without_weights_is_a_reason():
    model = share(nn.ReLU())
    assert shared(model).outcome.reason == "the model has no weights in ordinary memory"


# Instances


def toy(value=1.0):
    model = nn.Linear(64, 64)
    nn.init.constant_(model.weight, value)
    nn.init.zeros_(model.bias)
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(meeting.FOLDER, str(tmp_path))
    return tmp_path


def inode(model):
    return os.fstat(shared(model).descriptor).st_ino


def test_equal_models_meet_and_others_do_not(folder):
    first, second, other = share(toy()), share(toy()), share(toy(2.0))
    assert inode(first) == inode(second) != inode(other)
    assert "another instance" in shared(second).outcome.reason
    assert torch.equal(second.weight, toy().weight) and torch.equal(other.weight, toy(2.0).weight)


def test_a_holder_that_is_gone_is_replaced(folder):
    first = share(toy())
    (file,) = folder.iterdir()
    file.write_text(f"{2**22 + 1}/fd/3")  # more than there can be processes
    second, third = share(toy()), share(toy())
    assert "that other instances use" in shared(second).outcome.reason
    assert inode(first) != inode(second) == inode(third)


@pytest.mark.parametrize("kind", ["not sealed", "other bytes", "no memory", "nonsense"])
def test_what_a_file_in_the_folder_says_is_not_believed(folder, kind):
    first = share(toy())
    (file,) = folder.iterdir()
    wrong = os.memfd_create("wrong", os.MFD_ALLOW_SEALING)
    data = os.pread(shared(first).descriptor, shared(first).nbytes, 0)
    os.pwrite(wrong, data if kind == "not sealed" else bytes([data[0] ^ 1]) + data[1:], 0)
    if kind == "other bytes":
        fcntl.fcntl(wrong, fcntl.F_ADD_SEALS, 15)
    holders = {"no memory": "self/status", "nonsense": "x" * 90}
    file.write_text(holders.get(kind, f"{os.getpid()}/fd/{wrong}"))
    second = share(toy())
    assert inode(second) not in (inode(first), os.fstat(wrong).st_ino)
    assert torch.equal(second.weight, toy().weight)
    os.close(wrong)


def test_a_folder_that_cannot_be_used_is_a_reason(folder):
    first = share(toy())
    (file,) = folder.iterdir()
    file.unlink()
    file.symlink_to("/dev/null")
    second = share(toy())
    assert "cannot meet" in shared(second).outcome.reason and inode(second) != inode(first)


def test_launcher_and_instances_mean_the_same_folder():
    assert instances.SHARED == meeting.FOLDER


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU: no place for two instances")
def test_instances_of_hfaccel_run_share(tmp_path):
    script = tmp_path / "serve.py"
    script.write_text(
        textwrap.dedent("""
        import os, time, torch
        from pathlib import Path
        from hfaccel.memory import share, shared
        model = torch.nn.Linear(512, 512)
        torch.nn.init.ones_(model.weight), torch.nn.init.ones_(model.bias)
        known = shared(share(model))
        here = Path(__file__).parent
        (here / f"done-{os.getpid()}").touch()
        while len(list(here.glob("done-*"))) < 2:  # nobody ends before the other has come
            time.sleep(0.05)
        print(os.fstat(known.descriptor).st_ino, float(model.weight.sum()), os.environ["HFACCEL_SHARED"])
        """)
    )
    run = Path(sys.executable).with_name("hfaccel-run")
    done = subprocess.run(
        [str(run), "--ninstances", "2", str(script)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 2 and lines[0][1:] == lines[1][1:]
    assert not Path(lines[0][3]).exists()  # removed with the last of them
