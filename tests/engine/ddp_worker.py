"""One of two processes that train a model under DistributedDataParallel; writes its gradients into a file.

python ddp_worker.py RANK FOLDER {stock|fast} PORT
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel

import hfaccel

SIZES = dict(
    vocab_size=1000, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
)
SIZES |= dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


def main(rank: int, folder: Path, way: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = BertModel(BertConfig(**SIZES)).eval()
    if way == "fast":
        model = hfaccel.optimize(model)
    wrapped = DistributedDataParallel(model.train())
    ids = torch.randint(5, 1000, (2, 9), generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        result = wrapped(input_ids=ids)
        (result[0].square().mean() + result[1].square().mean()).backward()
        gradients = {name: each.grad.clone() for name, each in model.named_parameters()}
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        result = model(input_ids=ids)[0]
    torch.save({"gradients": gradients, "result": result}, folder / f"{way}-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
