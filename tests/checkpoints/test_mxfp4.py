"""The experts of GPT-OSS's checkpoints, which transformers expands to bfloat16, keep their own numbers."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import needs_kernels
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GptOssConfig, GptOssForCausalLM

import hfaccel
from hfaccel.engine.kernels import Kind

EXPERTS = ("gate_up_proj", "down_proj")
SIZES = dict(hidden_size=64, intermediate_size=96, num_local_experts=4, num_experts_per_tok=2, head_dim=32)
LEFT = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]

pytestmark = needs_kernels


def blocks_of(shape, generator):
    """Random numbers and exponents for an (experts, in_features, out_features) weight."""
    experts, inputs, outputs = shape
    size = experts, outputs, inputs // 32
    numbers = torch.randint(0, 256, (*size, 16), dtype=torch.uint8, generator=generator)
    return numbers, torch.randint(117, 123, size, dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path, generator = tmp_path_factory.mktemp("mxfp4"), torch.Generator().manual_seed(1)
    config = GptOssConfig(
        vocab_size=200, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, **SIZES
    )
    tensors = {}
    for name, values in GptOssForCausalLM(config).bfloat16().state_dict().items():
        if name.endswith(EXPERTS):
            tensors[f"{name}_blocks"], tensors[f"{name}_scales"] = blocks_of(values.shape, generator)
        else:
            tensors[name] = values.contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    quantized = {"quant_method": "mxfp4", "modules_to_not_convert": LEFT}
    more = {"architectures": ["GptOssForCausalLM"], "dtype": "bfloat16", "quantization_config": quantized}
    (path / "config.json").write_text(json.dumps({**config.to_dict(), **more}))
    return path


def load(folder, **more):
    return AutoModelForCausalLM.from_pretrained(folder, **more).eval()


def weights(model):
    return [getattr(layer.mlp.experts, name) for layer in model.model.layers for name in EXPERTS]


def ids(count=24):
    return torch.randint(0, 200, (2, count), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@torch.no_grad()
def test_no_bit_is_lost(folder, dtype):
    model = load(folder, dtype=dtype)
    fast = hfaccel.optimize(model)
    for packed, stock in zip(weights(fast), weights(model), strict=True):
        assert packed.kind is Kind.E2M1_GROUPS_OF_32 and packed.unpack().equal(stock)
        assert packed.memory.numel() < stock.numel() * 3 // 4  # 5 bits, and what fills pages
    assert fast.lm_head.weight.kind is (Kind.BFLOAT16 if dtype is torch.bfloat16 else Kind.FLOAT32)
    got, wanted = fast(ids()).logits.float(), model(ids()).logits.float()
    assert (got - wanted).norm() < 0.04 * wanted.norm()


@pytest.mark.parametrize("quantization", ["int8-weight-only", "int4-weight-only"])
def test_what_the_checkpoint_has_left_is_rounded_as_asked_for(folder, quantization):
    fast = hfaccel.optimize(load(folder), quantization=quantization)
    assert {weight.kind for weight in weights(fast)} == {Kind.E2M1_GROUPS_OF_32}
    assert fast.lm_head.weight.kind.label == quantization


@torch.no_grad()
def test_saved_and_loaded(folder, tmp_path):
    fast = hfaccel.optimize(load(folder), inplace=True)
    hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    assert loaded(ids()).logits.equal(fast(ids()).logits)
    assert all(
        one.memory.equal(other.memory) for one, other in zip(weights(loaded), weights(fast), strict=True)
    )
