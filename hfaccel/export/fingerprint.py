"""What an export depends on, as a key for the cache."""

from __future__ import annotations

import hashlib
import itertools
import json

import torch
from torch import nn

from hfaccel.host import read_host


def fingerprint(model: nn.Module) -> str:
    """Hash of names, types, shapes and values of all parameters and buffers: about 1 GB/s."""
    digest = hashlib.blake2b(digest_size=16)
    parts = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name, tensor in itertools.chain(*parts):  # a state dict leaves buffers out that are not persistent
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(plain(tensor).flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The values in ordinary layout, whatever layout they are kept in; no copy where they are."""
    values = tensor.detach()
    return (values if type(values) in (torch.Tensor, nn.Parameter) else values.clone()).contiguous()


def key(weights: str, **parts: object) -> str:
    """A name for what is made of these weights in this way on this kind of processor."""
    text = json.dumps({"weights": weights, "isa": isa(), **parts}, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()


def isa() -> list[str]:
    return sorted(read_host().processor.isa)
