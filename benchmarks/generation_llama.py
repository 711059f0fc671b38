"""llama.cpp through llama-cpp-python: files of the benchmark's weights, one llama_decode after another.

The package gguf writes the file in bfloat16. llama.cpp itself quantizes the others from it, and chooses the
types of their matrices as its own tool does. There is no tokenizer: token ids go in and come out.
"""

from __future__ import annotations

import ctypes
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import torch

from exports import exported
from generation_models import CONTEXT, build

Told = Any
QUANTIZED = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}
BATCH = 512  # tokens of a prompt that are computed at once: llama.cpp's default
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def load(model: str, kind: str) -> tuple[Any, int]:
    """What generates, and the bytes of the matrices in the file."""
    file = str(write(model, kind))
    context = open_context(file)
    tensors = gguf.GGUFReader(file).tensors
    return partial(run, context), sum(int(tensor.n_bytes) for tensor in tensors if len(tensor.shape) == 2)


def open_context(file: str) -> Any:
    llama_cpp.llama_backend_init()
    weights = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, BATCH, BATCH
    settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
    context = weights and llama_cpp.llama_init_from_model(weights, settings)
    if not context:
        raise ValueError(f"llama.cpp must load {file}, but it could not; its messages are above")
    return context


def run(context: Any, tokens: list[int], count: int, told: Told) -> None:
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(llama_cpp.llama_get_model(context)))
    for _ in range(count):
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        if failure := llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(tokens))):
            raise ValueError(f"llama_decode must return 0, but it returned {failure}")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(size,))
        tokens = [int(logits.argmax())]
        told(tokens[0])


def write(model: str, kind: str) -> Path:
    """The file of this kind, made unless it is there."""
    folder = exported(f"llama.cpp-{model}-{kind}", partial(_write, model, kind))
    return folder / "model.gguf"


def _write(model: str, kind: str, folder: Path) -> None:
    target = folder / "model.gguf"
    if kind == "bf16":
        _write_bfloat16(build(model), target)
        return
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = QUANTIZED[kind]
    settings.nthread = torch.get_num_threads()
    source = str(write(model, "bf16")).encode()
    if failure := llama_cpp.llama_model_quantize(source, str(target).encode(), ctypes.byref(settings)):
        raise ValueError(f"llama_model_quantize must return 0, but it returned {failure}")


def _write_bfloat16(module: Any, file: Path) -> None:
    """Matrices in bfloat16; norms and biases in float32, as llama.cpp wants them."""
    writer = gguf.GGUFWriter(str(file), module.config.model_type)
    _write_configuration(writer, module.config)
    for name, weight in module.named_parameters():
        array = _permuted(name, weight, module.config).detach().numpy()
        kind = gguf.GGMLQuantizationType.BF16 if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(_name(name), gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_configuration(writer: Any, configuration: Any) -> None:
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(configuration.max_position_embeddings)
    writer.add_embedding_length(configuration.hidden_size)
    writer.add_block_count(configuration.num_hidden_layers)
    writer.add_feed_forward_length(configuration.intermediate_size)
    writer.add_head_count(configuration.num_attention_heads)
    writer.add_head_count_kv(configuration.num_key_value_heads)
    writer.add_layer_norm_rms_eps(configuration.rms_norm_eps)
    writer.add_rope_freq_base(configuration.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(configuration.hidden_size // configuration.num_attention_heads)
    writer.add_vocab_size(configuration.vocab_size)
    writer.add_tokenizer_model("none")


def _name(name: str) -> str:
    """llama.cpp's name of a parameter: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        _, _, number, part = stem.split(".", 3)
        return f"blk.{number}.{NAMES[part]}.{kind}"
    return f"{NAMES[stem]}.{kind}"


def _permuted(name: str, weight: torch.Tensor, configuration: Any) -> torch.Tensor:
    """Of Llama, llama.cpp rotates neighbouring numbers of a head, transformers those of its halves."""
    heads = {"q_proj": configuration.num_attention_heads, "k_proj": configuration.num_key_value_heads}
    part = name.split(".")[-2]
    if configuration.model_type != "llama" or part not in heads:
        return weight
    return weight.unflatten(0, (heads[part], 2, -1)).transpose(1, 2).reshape(weight.shape)
