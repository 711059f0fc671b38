"""GGUF files of small random models, written with the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import nn

NAMES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}
HALVES = {
    "Q2_K": (80, 82),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # where the blocks of a type have float16


def blocks_of(values, name):
    """The (rows, columns) values in this type. Types that the package cannot round to get random blocks."""
    kind = GGMLQuantizationType[name]
    if name not in HALVES:
        return gguf.quants.quantize(values, kind)
    inputs, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(values.shape[0])
    blocks = rng.integers(0, 256, (values.size // inputs, size), dtype=np.uint8)
    for place in HALVES[name]:
        scales = (rng.random(len(blocks)) * 1e-4 + 1e-5).astype(np.float16)
        blocks[:, place : place + 2] = scales[:, None].view(np.uint8)
    return blocks.reshape(len(values), -1)


def values_of(blocks, name):
    return torch.from_numpy(gguf.quants.dequantize(blocks, GGMLQuantizationType[name]).copy())


def write(path, model, types):
    """`types(name)`: the type of a linear layer, by its name in the model. Returns the values by these names,
    with rows in the order in which the model has them."""
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    _describe(writer, config)
    names = gguf.get_tensor_name_map(NAMES[config.model_type], config.num_hidden_layers)
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    written = {}
    for full, tensor in model.state_dict().items():
        name, suffix = full.rsplit(".", 1)
        values, called = tensor.float().numpy(), f"{names.get_name(name)}.{suffix}"
        if name not in linears or suffix == "bias":
            writer.add_tensor(called, values)
            continue
        order = _order(name, config, len(values))
        blocks = blocks_of(values[order], types(name))
        writer.add_tensor(called, blocks, raw_dtype=GGMLQuantizationType[types(name)])
        written[name] = values_of(blocks, types(name))[np.argsort(order)]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def _order(name, config, rows):
    """llama.cpp has the rotary pairs of Llama's queries and keys next to each other."""
    order = np.arange(rows)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.rsplit(".", 1)[-1])
    if count is None or config.model_type != "llama":
        return order
    return order.reshape(count, 2, -1).swapaxes(1, 2).reshape(-1)


def _describe(writer, config):
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_token_list([f"<{number}>" for number in range(config.vocab_size)])
