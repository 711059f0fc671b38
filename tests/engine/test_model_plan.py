"""A model plan is data, and replacements are undone, copied, pickled and saved by one protocol."""

from __future__ import annotations

import copy
import io
import json
import pickle
import threading
from dataclasses import replace

import pytest
import torch
import transformers
from encoders import inputs, make, random_vectors, real, run
from torch import nn

import hfaccel
from hfaccel import engine
from hfaccel.engine import ModelPlan, Step, apply_plan, inspect, plan_of, plan_problem
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.replacements import REPLACEMENTS, ModuleReplacement, register
from hfaccel.replacement import original
from hfaccel.replacement import replace as put_in_front

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")


def gpt2():
    config = transformers.GPT2Config(vocab_size=500, n_embd=64, n_layer=2, n_head=4, n_positions=64)
    return random_vectors(transformers.GPT2LMHeadModel(config).eval())


def llama():
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4)
    config = transformers.LlamaConfig(vocab_size=500, tie_word_embeddings=True, **sizes)
    return random_vectors(transformers.LlamaForCausalLM(config).eval())


def mixture():
    sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, moe_intermediate_size=48)
    sizes |= dict(num_experts=4, num_experts_per_tok=2, num_key_value_heads=2, head_dim=16)
    config = transformers.Qwen3MoeConfig(vocab_size=500, **sizes)
    return random_vectors(transformers.Qwen3MoeForCausalLM(config).eval())


def resnet():
    sizes = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    return random_vectors(transformers.ResNetModel(transformers.ResNetConfig(**sizes)).eval())


def given(name):
    if name == "ResNet":
        return {"pixel_values": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))}
    return {"input_ids": torch.arange(3, 20)[None]} if name in TEXTS else inputs(name)


TEXTS = ("GPT-2", "Llama", "Qwen3-MoE")
MODELS = {
    "BERT": lambda: make("BERT"),
    "T5": lambda: make("T5"),
    "GPT-2": gpt2,
    "Llama": llama,
    "Qwen3-MoE": mixture,
    "ResNet": resnet,
}


def result(name, model):
    with torch.inference_mode():
        return model(**given(name))[0]


def classes(model):
    return [type(module) for module in model.modules()]


# A plan


@pytest.mark.parametrize("name", MODELS)
def test_inspecting_changes_nothing_and_applying_does_what_optimizing_does(name):
    model = MODELS[name]()
    before, parameters = classes(model), list(model.parameters())
    plan = inspect(model)
    assert classes(model) == before
    assert all(mine is its for mine, its in zip(model.parameters(), parameters, strict=True))

    fast = hfaccel.optimize(copy.deepcopy(model), inplace=True)
    apply_plan(model, plan)
    assert classes(model) == classes(fast)
    assert torch.equal(result(name, model), result(name, fast))
    assert plan_of(model) == plan and not plan_problem(model)


def test_a_plan_is_printed_compared_and_stored():
    plan = inspect(make("BERT"))
    assert plan == inspect(make("BERT")) and plan != inspect(make("T5"))
    assert ModelPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert "encoder.layer.0" in str(plan) and "family=BERT" in str(plan)
    assert {step.replacement for step in plan.steps} == {"linear", "layer", "embeddings", "stack", "shortcut"}


def test_it_says_what_int8_loses():
    plan = inspect(make("BERT"), kind=Kind.INT8)
    errors = [step.error for step in plan.steps if step.settings.get("kind") == "int8"]
    assert errors and all(0 < error < 0.06 for error in errors)


def test_it_is_edited_by_hand():
    stock, given = make("BERT"), inputs("BERT")
    plan = inspect(stock)
    first = replace(plan.steps[0], settings={"kind": "bfloat16"})
    alone = [step for step in plan.steps[1:] if step.replacement == "linear" and step.path != first.path]
    fast = copy.deepcopy(stock)
    apply_plan(fast, ModelPlan((first, *alone)))
    assert fast.get_submodule(first.path).weight.kind is Kind.BFLOAT16
    assert {step.replacement for step in plan_of(fast).steps} == {"linear"}
    torch.testing.assert_close(
        real(run(fast, given), given), real(run(stock, given), given), atol=0.05, rtol=0
    )


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (Step("nowhere", "layer"), "the model has no nowhere"),
        (Step("pooler", "region of nothing"), "a replacement must be one of convolution, "),
        (Step("pooler", "linear", {"kind": "float32"}), "must be a linear layer, but is a BertPooler"),
        (
            Step("encoder.layer.0", "layer", {"family": "BERT", "unpad": True, "slower": []}),
            "must be packed, but are not",
        ),
        (Step("encoder.layer.0", "layer", {}), "family"),
    ],
)
def test_a_plan_of_another_model_is_refused(step, reason):
    with pytest.raises(ValueError, match=reason):
        apply_plan(make("BERT"), ModelPlan((step,)))


def test_what_was_replaced_earlier_is_in_the_plan_of_the_whole():
    inner = hfaccel.optimize(make("BERT"))
    outer = hfaccel.optimize(nn.Sequential(inner, nn.Linear(64, 64)).eval())
    paths = {step.path for step in plan_of(outer).steps}
    assert {"0.encoder.layer.0", "1"} <= paths


# The protocol, for every replacement


def saved_by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": saved_by_torch,
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("name", MODELS)
def test_copies_are_replaced_alike_and_apart(name, way):
    fast = hfaccel.optimize(MODELS[name]())
    expected = result(name, fast)
    other = COPIES[way](fast)
    assert classes(other) == classes(fast) and plan_of(other) == plan_of(fast)
    assert torch.equal(result(name, other), expected)
    hfaccel.restore(other)
    assert torch.equal(result(name, fast), expected) and not plan_of(other).steps


@pytest.mark.parametrize("name", MODELS)
def test_undoing_leaves_nothing_behind(name):
    stock = MODELS[name]()
    fast = hfaccel.optimize(copy.deepcopy(stock))
    result(name, fast)
    hfaccel.restore(fast)
    assert classes(fast) == classes(stock)
    assert not [each for part in fast.modules() for each in vars(part) if each.startswith("_hfaccel")]


@pytest.mark.parametrize("name", MODELS)
def test_threads_have_the_same_results(name):
    fast = hfaccel.optimize(MODELS[name]())
    expected, got = result(name, fast), []
    threads = [threading.Thread(target=lambda: got.append(result(name, fast))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3 and all(torch.equal(each, expected) for each in got)


def test_every_replacement_is_tried_here():
    tried = {step.replacement for make_one in MODELS.values() for step in inspect(make_one()).steps}
    assert tried == {*REPLACEMENTS}


# Another one, as a third party would write it


class Doubled(ModuleReplacement):
    """A norm whose result is doubled."""

    hfaccel_name = "doubled"
    hfaccel_prefix = "Doubled"

    @classmethod
    def hfaccel_apply(cls, module, settings, find):
        put_in_front(module, cls, settings["times"])

    def hfaccel_settings(self, paths):
        return {"times": self.hfaccel_key}

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs) * self.hfaccel_key


def test_a_new_replacement_needs_one_class(monkeypatch):
    monkeypatch.setattr(engine.replacements, "REPLACEMENTS", REPLACEMENTS)
    register(Doubled)
    try:
        model, rows = nn.Sequential(nn.LayerNorm(8)).eval(), torch.randn(3, 8)
        apply_plan(model, ModelPlan((Step("0", "doubled", {"times": 2}),)))
        assert torch.equal(model(rows), nn.LayerNorm(8)(rows) * 2)
        (step,) = plan_of(copy.deepcopy(model)).steps
        assert (step.path, step.settings) == ("0", {"times": 2})
        engine.restore(model)
        assert type(model[0]) is nn.LayerNorm is original(type(model[0]))
    finally:
        del REPLACEMENTS["doubled"]
