"""A program whose children get a model from it, as sentence-transformers' pools do; prints as JSON with how
many threads each of them computes.

python shared_cores.py CHILDREN {alone|set}
"""

from __future__ import annotations

import json
import sys

import torch
import torch.multiprocessing
from torch import nn

import hfaccel


def work(model, barrier, answers):
    barrier.wait(120)  # all are there at the same time
    with torch.inference_mode():
        model(torch.ones(1, 256))
    answers.put(torch.get_num_threads())


def main(count, way):
    model = hfaccel.optimize(nn.Sequential(nn.Linear(256, 256), nn.Linear(256, 256)).eval())
    context = torch.multiprocessing.get_context("spawn")
    answers, barrier = context.SimpleQueue(), context.Barrier(count)
    target = work if way == "alone" else work_with_three
    children = [
        context.Process(target=target, args=(model.share_memory(), barrier, answers)) for _ in range(count)
    ]
    for child in children:
        child.start()
    found = [answers.get() for _ in children]
    for child in children:
        child.join(60)
    print(json.dumps({"parent": torch.get_num_threads(), "children": found}))


def work_with_three(model, barrier, answers):
    torch.set_num_threads(3)
    work(model, barrier, answers)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
