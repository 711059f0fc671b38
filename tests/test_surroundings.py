"""What else programs do to a model: peft, accelerate, torch.compile, pruning, threads, other numbers."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from conftest import at_once, make_bert, states
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture
def model():
    return make_bert(hidden_size=64, intermediate_size=128)


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def assert_near(got, expected):
    torch.testing.assert_close(got, expected, rtol=0, atol=2e-5)


# peft


def adapted(model, **settings):
    """With LoRA adapters that do something: new ones start at zero."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["query", "value", "dense"], lora_dropout=0.1, **settings)
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return wrapped


@pytest.fixture
def expected(model, batch):
    """Of the model with its adapters; far from that of the model alone."""
    result = states(adapted(copy.deepcopy(model)), batch)
    assert (result - states(model, batch)).abs().max() > 0.1
    return result


def test_adapters_merged_before(model, batch, expected):
    fast = hfaccel.optimize(adapted(model).merge_and_unload())
    assert_near(states(fast, batch), expected)
    assert len(fused(fast)) == 2 and not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("safe", [False, True])
def test_adapters_merged_after(model, batch, expected, safe):
    fast = hfaccel.optimize(model)
    states(fast, batch)
    merged = adapted(fast).merge_and_unload(safe_merge=safe)
    assert merged is fast and len(fused(fast)) == 2
    assert_near(states(fast, batch), expected)
    assert not hfaccel.report(fast).stock_calls


def test_adapters_on_top(model, batch, expected):
    fast = hfaccel.optimize(model)
    plain = states(fast, batch)
    wrapped = adapted(fast)
    assert_near(states(wrapped, batch), expected)
    with wrapped.disable_adapter():
        assert_near(states(wrapped, batch), plain)
    wrapped.merge_adapter()
    assert_near(states(wrapped, batch), expected)
    wrapped.unmerge_adapter()
    assert_near(states(wrapped, batch), expected)
    assert_near(states(wrapped.unload(), batch), plain)


def test_a_model_with_adapters_is_optimized_where_it_can_be(model, batch, expected):
    fast = hfaccel.optimize(adapted(model))
    assert_near(states(fast, batch), expected)
    report = hfaccel.report(fast)
    assert report.backend == "torch" and "a projection cannot be packed" in str(report.to_dict())
    assert_near(states(fast.merge_and_unload(), batch), expected)


def test_adapters_are_trained_as_on_stock(model, batch):
    stock, fast = adapted(copy.deepcopy(model)), adapted(hfaccel.optimize(model))
    for each in (stock, fast):
        each.train()
        torch.manual_seed(1)
        each(**batch)[0].square().mean().backward()
    trained = {
        name: parameter.grad for name, parameter in stock.named_parameters() if parameter.requires_grad
    }
    assert len(trained) > 10
    for name, parameter in fast.named_parameters():
        assert parameter.requires_grad == (name in trained)
        if name in trained:
            torch.testing.assert_close(parameter.grad, trained[name], rtol=1e-3, atol=1e-6)


# accelerate


@pytest.mark.parametrize("places", ["cpu", {"": "cpu"}, "auto"])
def test_loaded_with_a_device_map(model, batch, tmp_path, places):
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, device_map=places)
    fast = hfaccel.optimize(loaded)
    assert_near(states(fast, batch), states(model, batch))
    report = hfaccel.report(fast)
    assert report.backend == "torch" or "accelerate moves its weights" in report.outcomes[0].reason


def test_weights_that_accelerate_moves_are_left_alone(model, batch):
    from accelerate import cpu_offload

    expected = states(model, batch)
    cpu_offload(model, execution_device="cpu")
    fast = hfaccel.optimize(model)
    assert fast is model and not hfaccel.report(fast).backend
    assert_near(states(fast, batch), expected)


def test_accelerate_takes_over_an_optimized_model(model, batch):
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    fast = hfaccel.optimize(model)
    expected = states(fast, batch)
    cpu_offload(fast, execution_device="cpu")
    assert_near(states(fast, batch), expected)
    remove_hook_from_submodules(fast)
    assert_near(states(fast, batch), expected)


def test_a_hook_of_accelerate_on_a_part_is_called(model, batch):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Doubling(ModelHook):
        def post_forward(self, module, output):
            return output * 2

    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    plain = states(fast, batch)
    parts = [each.encoder.layer[1].attention.self.value for each in (stock, fast)]
    for part in parts:
        add_hook_to_module(part, Doubling())
    assert_near(states(fast, batch), states(stock, batch))
    assert "the forward of the submodule value was replaced" in hfaccel.report(fast).stock_calls
    for part in parts:
        remove_hook_from_module(part)
    assert torch.equal(states(fast, batch), plain)


# torch.compile and modes


def compiled(model, **settings):
    """And a list to which the number of operations of each graph is added."""
    graphs = []

    def backend(module, inputs):
        graphs.append(len(module.graph.nodes))
        return module.forward

    torch._dynamo.reset()
    return torch.compile(model, backend=backend, **settings), graphs


def test_a_compiled_model_breaks_no_graph_at_each_layer(batch):
    fast = hfaccel.optimize(make_bert(hidden_size=64, intermediate_size=128, num_hidden_layers=5))
    around, graphs = compiled(fast)
    assert_near(states(around, batch), states(fast, batch))
    encoder, hidden = fast.encoder, torch.randn(2, 9, 64)
    inside, graphs_inside = compiled(encoder)
    with torch.inference_mode():
        assert torch.equal(inside(hidden)[0], encoder(hidden)[0])
    assert len(graphs) <= 1 and len(graphs_inside) <= 1


def make_decoder():
    sizes = dict(
        n_embd=64, n_layer=3, n_head=4, n_positions=40, vocab_size=99, bos_token_id=1, eos_token_id=2
    )
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes)).eval()


def test_a_compiled_decoder_breaks_no_graph_at_each_linear_layer(tmp_path):
    stock, ids = make_decoder(), torch.tensor([[5, 6, 7, 8, 9]])
    fast = hfaccel.optimize(copy.deepcopy(stock))
    hfaccel.save(fast, tmp_path)
    copies = [copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), hfaccel.load(tmp_path)]
    for model in (fast, *copies):
        assert type(model).__name__ == "GPT2LMHeadModel" and model.can_generate()
        for part, expected in ((model, stock), (model.transformer, stock.transformer)):
            around, graphs = compiled(part)
            with torch.inference_mode():
                assert_near(around(ids)[0], expected(ids)[0])
            assert len(graphs) <= 1
        told = dict(max_new_tokens=5, do_sample=False)
        assert torch.equal(model.generate(ids, **told), stock.generate(ids, **told))
    assert type(hfaccel.restore(fast)) is type(stock)


def test_a_decoder_in_training_is_compiled_as_stock():
    fast = hfaccel.optimize(make_decoder()).train()
    around, graphs = compiled(fast, fullgraph=True)
    around(torch.tensor([[5, 6, 7]]), use_cache=False)[0].mean().backward()
    assert len(graphs) == 1 and fast.transformer.h[0].mlp.c_fc.weight.grad is not None


def test_one_graph_of_an_optimized_model_is_refused_with_the_remedy(model, batch):
    fast = hfaccel.optimize(model)
    for part, given in ((fast, batch), (fast.encoder, {"hidden_states": torch.randn(2, 9, 64)})):
        with torch.inference_mode(), pytest.raises(RuntimeError, match=r"call hfaccel\.restore\(model\)"):
            compiled(part, fullgraph=True)[0](**given)
    around, graphs = compiled(hfaccel.restore(fast), fullgraph=True)
    assert_near(states(around, batch), states(fast, batch))
    assert len(graphs) == 1


def test_a_model_in_training_is_compiled_as_stock(model, batch):
    stock, fast = copy.deepcopy(model).train(), hfaccel.optimize(model).train()
    for each in (stock, fast):
        for module in each.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    around, graphs = compiled(fast, fullgraph=True)
    for each in (around, stock):
        each(**batch)[0].square().mean().backward()
    assert len(graphs) == 1
    for parameter, expected in zip(fast.parameters(), stock.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3, atol=1e-6)


def parts_compiled(model):
    for number, layer in enumerate(model.encoder.layer):
        model.encoder.layer[number] = torch.compile(layer, backend="eager")
    return model


def compiled_inside(model):
    model.compile(backend="eager")
    return model


WAYS = {
    "around": lambda model: torch.compile(model, backend="eager"),
    "parts": parts_compiled,
    "inside": compiled_inside,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", ["optimized", "compiled"])
def test_compiled_models(model, batch, way, first):
    expected = states(copy.deepcopy(model), batch)
    try:
        both = (
            WAYS[way](hfaccel.optimize(model)) if first == "optimized" else hfaccel.optimize(WAYS[way](model))
        )
        for _ in range(2):
            assert_near(states(both, batch), expected)
    finally:
        torch._dynamo.reset()


def test_a_change_of_modes_between_calls(model, batch):
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    expected = states(stock, batch)
    real = batch["attention_mask"].bool()
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            assert_near(fast(**batch)[0][real], expected[real])
    assert list(hfaccel.report(fast).stock_calls) == ["gradients are enabled; torch.inference_mode is faster"]


def test_training_draws_the_same_random_numbers(model, batch):
    stock, fast = copy.deepcopy(model).train(), hfaccel.optimize(model).train()
    for each in (stock, fast):
        torch.manual_seed(5)
        each(**batch)[0].square().mean().backward()
    wanted = dict(stock.named_parameters())
    for name, parameter in fast.named_parameters():
        if wanted[name].grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-3, atol=1e-6)


def test_other_weights_for_one_call(model, batch):
    from torch.func import functional_call

    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    plain = states(fast, batch)
    other = {name: parameter.detach() * 1.5 for name, parameter in stock.named_parameters()}
    with torch.inference_mode():
        expected, got = (functional_call(each, other, (), batch)[0] for each in (stock, fast))
    assert_near(got[0], expected[0])
    assert torch.equal(states(fast, batch), plain)


# Changed parts


def prune(linear):
    from torch.nn.utils import prune

    prune.l1_unstructured(linear, "weight", amount=0.5)


def parametrize(linear):
    class Half(nn.Module):
        def forward(self, weight):
            return weight / 2

    nn.utils.parametrize.register_parametrization(linear, "weight", Half())


@pytest.mark.parametrize("change", [prune, parametrize])
@pytest.mark.parametrize("called", [False, True])
def test_a_weight_that_is_computed(model, batch, change, called):
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    if called:
        states(fast, batch)
    for each in (stock, fast):
        change(each.encoder.layer[0].output.dense)
    assert_near(states(fast, batch), states(stock, batch))
    assert hfaccel.report(fast).stock_calls
    assert_near(states(hfaccel.optimize(stock), batch), states(stock, batch))


def test_data_of_a_weight_may_be_set(model, batch):
    """As older code writes `parameter.data = ...`."""
    stock, fast = copy.deepcopy(model), hfaccel.optimize(model)
    states(fast, batch)
    for each in (stock, fast):
        weight = each.encoder.layer[0].output.dense.weight
        weight.data = weight.data * 2
    assert_near(states(fast, batch), states(stock, batch))
    for each in (stock, fast):
        weight = each.encoder.layer[0].output.dense.weight
        weight.data = weight.data.double()
        assert weight.dtype == torch.float64
        each.double()
    real = batch["attention_mask"].bool()
    with torch.inference_mode():
        assert_near(fast(**batch)[0][real], stock(**batch)[0][real])


# Threads, files


def test_several_threads_optimize_at_once(model, batch):
    expected, stock = states(model, batch), copy.deepcopy(model)

    def work(_):
        mine = hfaccel.optimize(copy.deepcopy(stock))
        return torch.allclose(states(mine, batch), expected, atol=2e-5) and fused(mine)

    assert all(at_once(4, work))


def test_a_whole_model_in_a_file(model, batch):
    fast, file = hfaccel.optimize(model), io.BytesIO()
    torch.save(fast, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert torch.equal(states(loaded, batch), states(fast, batch)) and len(fused(loaded)) == 2


def test_a_state_of_several_types_in_a_file(tmp_path):
    """All of it lies in one arena, and torch.save refuses one storage that is seen as two types."""
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64)).eval()  # which counts its batches
    fast = hfaccel.optimize(model)
    torch.save(fast.state_dict(), tmp_path / "state")
    loaded = torch.load(tmp_path / "state")
    assert all(torch.equal(value, loaded[name]) for name, value in fast.state_dict().items())
    torch.save(fast[0].bias, tmp_path / "bias")
    assert (tmp_path / "bias").stat().st_size < 3000  # of which 256 are its own


# Numbers that are not computed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("options", [{}, {"quantization": "int8"}], ids=["", "int8"])
def test_a_type_that_is_not_packed_is_a_reason(model, batch, dtype, options):
    model = model.to(dtype)
    expected = states(model, batch)
    fast = hfaccel.optimize(model, **options)
    assert torch.equal(states(fast, batch), expected) and not fused(fast)
    assert f"its weight is {str(dtype)[6:]}" in str(hfaccel.report(fast).to_dict())


def test_a_model_that_torch_has_quantized(model, batch):
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    expected = states(quantized, batch)
    for options in ({}, {"quantization": "int8"}):
        fast = hfaccel.optimize(quantized, **options)
        assert torch.equal(states(fast, batch), expected)
        assert "the model has no linear layer" in str(hfaccel.report(fast).to_dict())
