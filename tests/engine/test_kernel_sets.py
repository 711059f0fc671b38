"""Every instruction set that this CPU has computes the same, and a packed weight moves between them."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import needs_kernels
from torch import nn
from transformers import BertConfig, BertModel

import hfaccel
from hfaccel import native
from hfaccel.engine import kernels
from hfaccel.engine.kernels import Kind, kernels_problem, set_in_use
from hfaccel.engine.weights.layout import laid_out_anew, read
from hfaccel.engine.weights.packed import PackedWeight, TransposedWeight
from hfaccel.errors import KernelsMissing
from hfaccel.host import KERNEL_SETS, MAX_ISA, module_of, read_host
from hfaccel.memory import Arena
from hfaccel.precision import QUANTIZED

SETS = [name for name in read_host().processor.kernel_sets if native.load_kernels([module_of(name)])[0]]
TOLERANCES = {"float32": 3e-6, "bfloat16": 2e-2, "int8": 3e-2}
TOLERANCES |= {"int8-weight-only": 3e-2, "int4-weight-only": 0.3}
OPTIONS = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}}
OPTIONS |= {name: {"quantization": name} for name in QUANTIZED}

# Heads and hidden sizes that are whole steps of a set and parts of one; lengths around the height of tiles.
PROGRAM = """
import sys, torch
import hfaccel
from hfaccel.engine.calibration.speedups import Times
from hfaccel.engine.kernels import Kind, set_in_use
from hfaccel.precision import QUANTIZED
from transformers import BertConfig, BertModel
Times.is_slower = False  # what is computed is compared here; whether it pays may vary from run to run
results = {"set": set_in_use()}
for heads, hidden in ((2, 64), (2, 40), (3, 96)):
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=hidden, num_attention_heads=heads, intermediate_size=2 * hidden + 8, num_hidden_layers=2,
        vocab_size=99,
    )
    stock = BertModel(config).eval()
    options = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}}
    options |= {name: {"quantization": name} for name in QUANTIZED}
    models = {name: hfaccel.optimize(stock, backend="torch", **each) for name, each in options.items()}
    models["stock"] = stock
    for lengths in ([1], [15, 16, 17], [31, 33, 64, 65], [130, 7]):
        ids = torch.randint(1, 99, (len(lengths), max(lengths)))
        mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
        for name, model in models.items():
            with torch.inference_mode():
                out = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
            results[name, heads, hidden, tuple(lengths)] = out.clone()
torch.save(results, sys.argv[1])
"""


def run(program, *arguments, isa):
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, MAX_ISA: isa}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [*SETS, "none"])
def test_all_sets_agree_with_stock(tmp_path, name):
    run(PROGRAM, tmp_path / "results", isa=name)
    results = torch.load(tmp_path / "results")
    assert results.pop("set") == name.replace("none", "")
    for (kind, *case), got in results.items():
        if kind != "stock":
            torch.testing.assert_close(got, results["stock", *case], rtol=0, atol=TOLERANCES[kind])


@needs_kernels
@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("shape", [(33, 5), (70, 33), (64, 96), (100, 130)])
@pytest.mark.parametrize("cls", [PackedWeight, TransposedWeight])
def test_a_weight_keeps_its_numbers_in_another_layout(monkeypatch, kind, shape, cls):
    torch.manual_seed(0)
    factors = torch.rand(shape[1] if cls is PackedWeight else shape[0]) + 0.5
    if len(factors) > 2:
        factors[1] = 0  # an input that is not rounded
    given = factors if kind is Kind.INT8 else None
    weight = cls.pack(nn.Parameter(torch.randn(shape)), Arena(1 << 20), kind, given)
    for size in (16, 32):
        stand_in = SimpleNamespace(PANEL=size), "another", ""
        monkeypatch.setattr(kernels, "_loaded", lambda stand_in=stand_in: stand_in)
        layout = cls.layout_of(kind, shape)
        layout = type(layout)(kind, layout.rows, layout.columns, size)
        moved = laid_out_anew(weight.packing, weight.memory)
        dense = read(weight.packing, weight.memory, torch.float32)
        assert torch.equal(read(layout, moved, torch.float32), dense)
        attached = cls.attach(weight.memory, kind, shape, torch.float32, weight.packing.panel, True)
        assert type(attached) is cls and torch.equal(attached.memory, moved)


@needs_kernels
@pytest.mark.parametrize("here", SETS)
def test_a_saved_model_moves_between_sets(tmp_path, here):
    torch.manual_seed(0)
    config = BertConfig(hidden_size=64, num_attention_heads=2, intermediate_size=160, num_hidden_layers=2)
    stock = BertModel(config).eval()
    ids = torch.randint(1, 99, (2, 17))
    for name, options in OPTIONS.items():
        fast = hfaccel.optimize(stock, backend="torch", **options)
        with pytest.warns(RuntimeWarning, match="cannot be made again"):
            hfaccel.save(fast, tmp_path / name)
        with torch.inference_mode():
            torch.save((ids, fast(ids).last_hidden_state), tmp_path / f"{name}.pt")
    told = run(
        f"""
import sys, torch, hfaccel
for name, atol in {TOLERANCES!r}.items():
    ids, wanted = torch.load(sys.argv[1] + "/" + name + ".pt")
    model = hfaccel.load(sys.argv[1] + "/" + name)
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).last_hidden_state, wanted, rtol=0, atol=atol)
    print([line.reason for line in hfaccel.report(model).outcomes if line.subject == "saved weights"][0])
""",
        tmp_path,
        isa=here,
    )
    same = kernels.panel() == native.load_kernels([module_of(here)])[0].PANEL
    assert told.count("as they are" if same else f"kernels for {set_in_use()} read") == len(OPTIONS)


@needs_kernels
def test_a_pickled_weight_is_dense_where_there_are_no_kernels(tmp_path):
    torch.manual_seed(0)
    fast = hfaccel.optimize(nn.Linear(96, 64).eval(), backend="torch")
    torch.save(fast, tmp_path / "layer.pt")
    x = torch.randn(3, 96)
    with torch.inference_mode():
        torch.save((x, fast(x)), tmp_path / "result.pt")
    told = run(
        """
import sys, torch
layer = torch.load(sys.argv[1] + "/layer.pt", weights_only=False)
x, wanted = torch.load(sys.argv[1] + "/result.pt")
torch.testing.assert_close(layer(x), wanted)
print(type(layer.weight).__name__)
""",
        tmp_path,
        isa="none",
    )
    assert told == "Parameter\n"


def test_kernels_refuse_by_themselves_where_there_are_none(monkeypatch):
    monkeypatch.setattr(kernels, "_loaded", lambda: (None, "", "no kernels for this CPU"))
    assert kernels_problem() == "no kernels for this CPU" and not kernels.multiplies(Kind.FLOAT32)
    with pytest.raises(KernelsMissing, match="no kernels for this CPU"):
        kernels.kernels()


def test_a_set_that_the_cpu_lacks_cannot_be_imported():
    flags = read_host().processor.isa
    missing = [row.name for row in KERNEL_SETS if not set(row.flags) <= set(flags)]
    assert missing  # those of the other architecture
    for name in missing:
        loaded, found, problem = native.load_kernels([module_of(name)])
        assert loaded is None and found == "" and ("which this CPU lacks" in problem or "missing" in problem)


@pytest.mark.parametrize(("isa", "reason"), [("none", "HFACCEL_MAX_ISA=none"), ("sse9", "it is ignored")])
def test_a_cap_is_told(isa, reason):
    program = "import hfaccel; print(hfaccel.info())"
    assert reason in " ".join(run(program, isa=isa).replace("│", " ").split())


@needs_kernels
def test_float32_loses_no_more_than_torchs():
    """Numbers of many sizes, against float64. AMX multiplies float32 in three parts."""
    torch.manual_seed(0)
    stock = nn.Linear(1536, 200).eval()
    x = torch.randn(130, 1536) * torch.logspace(-6, 6, 1536)
    with torch.inference_mode():
        right, plain = copy.deepcopy(stock).double()(x.double()), stock(x)
        fast = hfaccel.optimize(stock, backend="torch")
        assert type(fast) is not type(stock)
        error = (fast(x) - right).abs().max().item()
    assert error <= 2 * (plain - right).abs().max().item()


@needs_kernels
def test_what_is_not_finite_stays_so():
    x = torch.randn(100, 96)
    x[3, 4], x[5, 6], x[7, 8] = math.nan, math.inf, -math.inf
    with torch.inference_mode():
        got = hfaccel.optimize(nn.Linear(96, 64).eval(), backend="torch")(x)
    assert got.isfinite().all(1).logical_not().nonzero().flatten().tolist() == [3, 5, 7]


@pytest.mark.skipif("amx" not in SETS, reason="no AMX here")
def test_the_variable_of_onednn_leaves_amx_out():
    program = "from hfaccel.engine.kernels import set_in_use; print(set_in_use())"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert told == "avx512_bf16\n"
