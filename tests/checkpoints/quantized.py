"""Modules as the quantizers of transformers leave them in a loaded model, made without their packages: the
packers below follow the published formats, bit by bit."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def llama(**more):
    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
    config = LlamaConfig(vocab_size=300, num_key_value_heads=2, **(sizes | more))
    return LlamaForCausalLM(config).eval()


def rounded(weight, bits, group, symmetric):
    """Numbers (rows, columns), scales and zeros (rows, groups)."""
    columns = weight.shape[1]
    group = columns if group <= 0 else min(group, columns)
    parts = weight.split(group, 1)
    most = (1 << bits) - 1
    if symmetric:
        scales = torch.stack([part.abs().amax(1) for part in parts], 1) * 2 / most
        zeros = torch.full_like(scales, 1 << bits - 1)
    else:
        scales = torch.stack([part.amax(1) - part.amin(1) for part in parts], 1) / most
        zeros = (-torch.stack([part.amin(1) for part in parts], 1) / scales).round()
    scales = scales.half().float()
    of_inputs = torch.arange(columns) // group
    numbers = (weight / scales[:, of_inputs] + zeros[:, of_inputs]).round().clamp(0, most)
    return numbers.long(), scales, zeros.clamp(0, most).long()


def words(numbers, bits):
    """int32, packed along the last dimension, the first number in the lowest bits."""
    per_word = 32 // bits
    shifted = numbers.unflatten(-1, (-1, per_word)) << torch.arange(per_word) * bits
    return shifted.sum(-1).to(torch.uint32).view(torch.int32)


class Dequantizing(nn.Module):
    """Computes with the exact values, in float32."""

    def __init__(self, linear, bits, group, numbers, scales, zeros):
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bits, self.group_size, self.bias = bits, group, linear.bias
        size = self.in_features if group <= 0 else group
        of_inputs = torch.arange(self.in_features) // size
        self.exact = [(scales[:, of_inputs] * (numbers - zeros[:, of_inputs]))]
        self.train(False)

    def forward(self, input):
        return nn.functional.linear(input, self.exact[0].to(input.dtype), self.bias)


class Gptq(Dequantizing):
    def __init__(self, linear, bits=4, group=64, symmetric=True, format=2):
        numbers, scales, zeros = rounded(linear.weight.detach(), bits, group, symmetric)
        super().__init__(linear, bits, group, numbers, scales, zeros)
        self.format = format
        size = self.in_features if group <= 0 else group
        self.register_buffer("qweight", words(numbers, bits).t().contiguous())
        self.register_buffer("qzeros", words((zeros - int(format == 1)).t() % (1 << bits), bits))
        self.register_buffer("scales", scales.t().contiguous())
        self.register_buffer("g_idx", (torch.arange(self.in_features) // size).int())

    def qzero_format(self):
        return self.format


class Awq(Dequantizing):
    def __init__(self, linear, bits=4, group=64, symmetric=True):
        numbers, scales, zeros = rounded(linear.weight.detach(), bits, group, symmetric)
        super().__init__(linear, bits, group, numbers, scales, zeros)

        def packed(values):
            return words(values.unflatten(-1, (-1, 8))[..., list(AWQ_ORDER)].flatten(-2), 4)

        self.register_buffer("qweight", packed(numbers.t()))
        self.register_buffer("qzeros", packed(zeros.t()))
        self.register_buffer("scales", scales.t().contiguous())


def compressed(linear, bits=4, group=64, symmetric=True, inputs=None, **changed):
    numbers, scales, zeros = rounded(linear.weight.detach(), bits, group, symmetric)
    strategy = "channel" if group <= 0 else "group"
    weights = dict(
        symmetric=False,
        type="int",
        num_bits=bits,
        strategy=strategy,
        group_size=None if group <= 0 else group,
    )
    scheme = dict(weights=SimpleNamespace(**weights), input_activations=inputs, output_activations=None)
    module = nn.Linear(linear.in_features, linear.out_features, bias=False)
    exact = Dequantizing(linear, bits, group, numbers, scales, zeros)
    module.forward = exact.forward
    module.quantization_scheme = SimpleNamespace(**(scheme | changed))
    del module.weight

    def hold(name, tensor):
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    if inputs is None:
        hold("weight_packed", words(numbers, bits))
        hold("weight_shape", torch.tensor(numbers.shape))
    else:
        hold("weight", (numbers - 128).to(torch.int8))
    hold("weight_scale", scales)
    if not symmetric:
        hold("weight_zero_point", words(zeros.t(), bits).t().contiguous())
    module.exact = exact.exact
    return module.eval()


class Int8Tensor(torch.Tensor):
    """torchao's, as far as it is read: signed bytes with scales and zeros."""

    @staticmethod
    def __new__(cls, values, **_):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=torch.float32)

    def __init__(self, values, *, qdata, scale, zero_point, group, **more):
        self.exact, self.qdata, self.scale, self.zero_point = values, qdata, scale, zero_point
        self.block_size = [1, group]
        vars(self).update(more)

    def __tensor_flatten__(self):
        return ["qdata", "scale", "zero_point"], ()

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return args[0]
        return func(*(getattr(each, "exact", each) for each in args), **(kwargs or {}))


class IntxUnpackedToInt8Tensor(Int8Tensor):
    pass


for _class in (Int8Tensor, IntxUnpackedToInt8Tensor):
    _class.__module__ = "torchao.quantization"


def torchao(linear, *, bits=8, group=-1, symmetric=True, cls=Int8Tensor, **more):
    numbers, scales, zeros = rounded(linear.weight.detach(), bits, group, symmetric)
    exact = Dequantizing(linear, bits, group, numbers, scales, zeros).exact
    middle = 1 << bits - 1
    weight = cls(
        exact[0],
        qdata=(numbers - middle).to(torch.int8),
        scale=scales,
        zero_point=(zeros - middle).to(torch.int8),
        group=linear.in_features if group <= 0 else group,
        **more,
    )
    module = nn.Linear(linear.in_features, linear.out_features, bias=False)
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.exact = exact
    return module.eval()


def with_layers(model, make):
    """The model with `make(linear)` in the place of the linear layers of its layers."""
    for layer in model.model.layers:
        for path, module in [*layer.named_modules()]:
            if isinstance(module, nn.Linear):
                layer.set_submodule(path, make(module))
    return model
