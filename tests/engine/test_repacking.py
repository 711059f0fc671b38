"""Optimized models that are trained, cast, or shared: packed as before when that is over."""

from __future__ import annotations

import copy
import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from conftest import make_bert, states
from torch import nn
from transformers import GPT2Config, GPT2Model

import hfaccel
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.engine.weights.repacking import ARENA
from hfaccel.host import read_host
from hfaccel.memory import padded
from hfaccel.plan.budget import cpu_budget

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture
def model():
    return make_bert(hidden_size=64, intermediate_size=128)


def packed(model):
    return [name for name, each in model.named_parameters() if isinstance(each, PackedWeight)]


def rounding(kind):
    if kernels_problem():
        pytest.skip(kernels_problem())
    return {"dtype": torch.bfloat16} if kind is Kind.BFLOAT16 else {"quantization": "int8"}


# Training


def train(model, batch, optimizer, steps=2):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(0)
        model(**batch)[0].square().mean().backward()
        optimizer.step()
    model.eval()


def test_training_works_on_ordinary_weights_and_evaluation_on_packed_ones(model, batch):
    fast, stock = hfaccel.optimize(copy.deepcopy(model)), model
    names, parameters = packed(fast), list(fast.parameters())
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.1, momentum=0.9) for each in (fast, stock)]
    for _ in range(2):
        for each, optimizer in zip((fast, stock), optimizers, strict=True):
            train(each, batch, optimizer)
        torch.testing.assert_close(states(fast, batch), states(stock, batch), rtol=0, atol=1e-4)
        assert packed(fast) == names
        assert all(a is b for a, b in zip(parameters, fast.parameters(), strict=True))
        assert set(hfaccel.report(fast).stock_calls) <= {"the model is in training mode"}
    assert all(type(each) is nn.Parameter for each in fast.train().parameters())
    assert fast.state_dict().keys() == stock.state_dict().keys()
    assert type(hfaccel.restore(fast).encoder.layer[0].output.dense) is nn.Linear


def test_conv1d_of_gpt2_is_trained_so_too():
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(n_embd=256, n_layer=1, n_head=4, vocab_size=100)).eval()
    fast = hfaccel.optimize(copy.deepcopy(model))
    names, values = packed(fast), dict(model.named_parameters())
    assert not packed(fast.train()) and packed(fast.eval()) == names
    for name, parameter in fast.named_parameters():
        assert torch.equal(parameter, values[name])


def test_a_model_in_training_holds_its_weights_once(model, batch):
    fast = hfaccel.optimize(model, inplace=True)
    states(fast, batch), states(fast, {"input_ids": batch["input_ids"]})
    memories = [weakref.ref(each.memory) for each in fast.parameters() if isinstance(each, PackedWeight)]
    fast.train()
    gc.collect()
    assert memories and not any(each() is not None for each in memories)


@pytest.mark.parametrize("kind", [Kind.BFLOAT16, Kind.INT8])
def test_rounded_weights_are_rounded_again_only_if_that_loses_nothing(model, batch, kind):
    fast = hfaccel.optimize(model, **rounding(kind))
    names, expected = packed(fast), states(fast, batch)
    assert not packed(fast.train())
    torch.testing.assert_close(states(fast.eval(), batch), expected, rtol=0, atol=1e-5)
    assert packed(fast) == names
    train(fast, batch, torch.optim.SGD(fast.parameters(), lr=0.1), steps=1)
    trained = fast.encoder.layer[0].output.dense
    values = trained.weight.detach().clone()
    assert torch.equal(fast.train().eval().encoder.layer[0].output.dense.weight, values)
    stock = hfaccel.restore(copy.deepcopy(fast))  # weights without a gradient are packed in `fast`
    torch.testing.assert_close(states(fast, batch), states(stock, batch), rtol=0, atol=0.1)


def test_a_graph_from_training_is_run_after_evaluation_began(model, batch):
    fast, stock = hfaccel.optimize(copy.deepcopy(model)), model
    for each in (fast, stock):
        torch.manual_seed(0)
        loss = each.train()(**batch)[0].square().mean()
        each.eval()
        loss.backward()
    for parameter, expected in zip(fast.parameters(), stock.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-6)


# Other types


@pytest.mark.parametrize("options", [{}, Kind.INT8])
def test_there_and_back_is_packed_again(model, batch, options):
    options = options if options == {} else rounding(options)
    fast = hfaccel.optimize(model, **options)
    names, kinds = packed(fast), {each.kind for each in fast.parameters() if hasattr(each, "kind")}
    fast.half()
    assert not packed(fast)
    fast.float()
    assert packed(fast) == names
    assert {each.kind for each in fast.parameters() if hasattr(each, "kind")} == kinds
    expected = states(hfaccel.restore(copy.deepcopy(fast)), batch)
    torch.testing.assert_close(states(fast, batch), expected, rtol=0, atol=0.1 if options else 1e-5)
    assert not hfaccel.report(fast).stock_calls


def test_cast_to_bfloat16_is_packed_in_that(model, batch):
    rounding(Kind.BFLOAT16)
    fast = hfaccel.optimize(copy.deepcopy(model))
    names = packed(fast)
    assert packed(fast.to(torch.bfloat16)) == names
    got = states(fast, batch)
    assert got.dtype is torch.bfloat16 and not hfaccel.report(fast).stock_calls
    torch.testing.assert_close(got.float(), states(model, batch), rtol=0, atol=0.1)


def test_moving_nowhere_touches_nothing(model):
    fast = hfaccel.optimize(model)
    weight = fast.encoder.layer[0].output.dense.weight
    before = weight.memory, weight.memory._version
    fast.to("cpu").float().eval()
    assert (weight.memory, weight.memory._version) == before


# Other processes


def work(model, tokens, answers):
    with torch.inference_mode():
        result = model(tokens)[0]
    kinds = [isinstance(each, PackedWeight) for each in model.parameters()]
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight.zero_()
    answers.put((sum(kinds), result.tolist(), hfaccel.report(model).stock_calls))


@pytest.mark.parametrize("kind", [Kind.FLOAT32, Kind.INT8])
def test_share_memory_keeps_the_weights_packed_and_workers_have_the_same_bytes(model, batch, kind):
    fast = hfaccel.optimize(model, **({} if kind is Kind.FLOAT32 else rounding(kind)))
    names, expected, tokens = packed(fast), states(fast, batch), batch["input_ids"]
    fast.share_memory()
    assert packed(fast) == names and all(each.is_shared() for each in fast.parameters())
    assert torch.equal(states(fast, batch), expected) and not hfaccel.report(fast).stock_calls
    with torch.inference_mode():
        expected = fast(tokens)[0]
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=work, args=(fast, tokens, answers))
    worker.start()
    count, result, stock_calls = answers.get(timeout=120)
    worker.join()
    assert count == len(names) and not stock_calls
    torch.testing.assert_close(torch.tensor(result), expected, rtol=0, atol=1e-6)
    assert not fast.encoder.layer[0].output.dense.weight.detach().any()  # as of any shared tensor


def test_gradients_that_processes_exchange_are_those_of_stock(tmp_path):
    """DistributedDataParallel over gloo, two processes with other texts each, two steps."""
    script = Path(__file__).with_name("ddp_worker.py")
    for way in ("stock", "fast"):
        with socket.create_server(("127.0.0.1", 0)) as server:  # a free port
            port = server.getsockname()[1]
        workers = [
            subprocess.Popen([sys.executable, str(script), str(rank), str(tmp_path), way, str(port)])
            for rank in range(2)
        ]
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    found = {
        (way, rank): torch.load(tmp_path / f"{way}-{rank}.pt")
        for way in ("stock", "fast")
        for rank in range(2)
    }
    for rank in range(2):
        stock, fast = found["stock", rank], found["fast", rank]
        assert stock["gradients"].keys() == fast["gradients"].keys()
        torch.testing.assert_close(fast["gradients"], stock["gradients"], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(fast["result"], stock["result"], rtol=0, atol=1e-4)
    torch.testing.assert_close(found["fast", 0]["gradients"], found["fast", 1]["gradients"], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("way", "variables", "expected"),
    [
        ("alone", {}, lambda cores: max(1, cores // 2)),
        ("set", {}, lambda cores: 3),
        ("alone", {"OMP_NUM_THREADS": "2"}, lambda cores: 2),
    ],
    ids=["rule", "torch.set_num_threads", "OMP_NUM_THREADS"],
)
def test_children_that_share_a_model_share_the_cores(way, variables, expected):
    """Unless the program or the environment says with how many threads they compute."""
    script = Path(__file__).with_name("shared_cores.py")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, str(script), "2", way], env=environment | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["children"] == [expected(cpu_budget(read_host()).threads)] * 2


def test_what_is_packed_again_lies_side_by_side():
    fast = hfaccel.optimize(make_bert(hidden_size=64, intermediate_size=128))
    fast.train().eval()
    weights = [each for each in fast.parameters() if isinstance(each, PackedWeight)]
    assert len({id(getattr(each.memory, ARENA)) for each in weights}) == 1 < len(weights)
    places = sorted((each.memory.data_ptr(), each.memory.numel()) for each in weights)
    ends = [address + padded(size) for address, size in places]
    assert ends[:-1] == [address for address, _ in places[1:]]
    arena = weakref.ref(getattr(weights[0].memory, ARENA))
    del fast, weights
    gc.collect()
    assert arena() is None
