"""The engines of benchmarks/continuous.py, each a row of ENGINES: how to load it.

`load(model)` gives a function that answers REQUESTS at once and returns the number of new tokens of each.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from threading import Thread, main_thread
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from generation_models import build, prompt
from report import kernels_in_use

PROMPTS = (16, 512, 64, 256, 128, 32, 384, 96)  # tokens
NEW = (128, 16, 96, 32, 64, 128, 48, 80)
# Of the settings that were tried on two cores (blocks, tokens of a batch, attention) the fastest.
SETTINGS = {"max_batch_tokens": 512, "num_blocks": 64}
ONE_BY_ONE, CONTINUOUS = "generate one by one, bf16", "transformers' continuous batching, bf16"
Serve = Callable[[list[list[int]]], list[int]]


def _stock(model: str) -> Any:
    module: Any = build(model).to(torch.bfloat16)  # type: ignore[arg-type]
    module.generation_config.eos_token_id = None
    return module


def one_by_one(model: str) -> Serve:
    module = _stock(model)

    def serve(prompts: list[list[int]]) -> list[int]:
        made = []
        for tokens, new in zip(prompts, NEW, strict=True):
            ids = torch.tensor([tokens])
            limits = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
            out = module.generate(ids, attention_mask=torch.ones_like(ids), **limits)
            made.append(out.shape[1] - len(tokens))
        return made

    return serve


def continuous(model: str) -> Serve:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    module = _stock(model)
    manager = module.init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(**SETTINGS),
    )
    manager.start()
    Thread(target=_stop_at_the_end, args=(manager,), daemon=True).start()

    def serve(prompts: list[list[int]]) -> list[int]:
        names = [
            manager.add_request(tokens, max_new_tokens=new) for tokens, new in zip(prompts, NEW, strict=True)
        ]
        done: dict[str, int] = {}
        while len(done) < len(names):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                done[result.request_id] = len(result.generated_tokens)
        return [done[name] for name in names]

    return serve


def _stop_at_the_end(manager: Any) -> None:
    """Its thread would keep the process from ending."""
    main_thread().join()
    manager.stop(block=False)


def hfaccel(model: str, **asked: Any) -> Serve:
    import hfaccel

    module: Any = build(model)
    module.generation_config.eos_token_id = None
    fast = hfaccel.optimize(module, backend="torch", inplace=True, **asked)
    generator = hfaccel.serve.Generator(fast, reuse=False)  # the rounds' prompts are the same
    if generator.reason:
        raise RuntimeError(generator.reason)

    def serve(prompts: list[list[int]]) -> list[int]:
        streams = [generator.submit(tokens, new) for tokens, new in zip(prompts, NEW, strict=True)]
        return [len(stream.result().tokens) for stream in streams]

    return serve


ENGINES: dict[str, Callable[[str], Serve]] = {
    ONE_BY_ONE: one_by_one,
    CONTINUOUS: continuous,
    "hfaccel bf16": partial(hfaccel, dtype=torch.bfloat16),
    "hfaccel int8-weight-only": partial(hfaccel, quantization="int8-weight-only"),
    "hfaccel int4-weight-only": partial(hfaccel, quantization="int4-weight-only"),
}


def serve(engine: str, model: str) -> Callable[[], dict[str, Any]]:
    """Each sample answers all requests once. Prompts change from round to round: nothing can be reused."""
    run = ENGINES[engine](model)
    own = engine.split()[0] == "hfaccel"
    told = {"threads": torch.get_num_threads(), "cpus": sorted(os.sched_getaffinity(0))}
    told |= {"version": version("hfaccel" if own else "transformers")}
    told |= {"kernels": kernels_in_use()} if own else {}
    rounds = 0

    def sample() -> dict[str, Any]:
        nonlocal rounds
        rounds += 1
        prompts = [prompt(model, length + rounds % 7)[:length] for length in PROMPTS]
        start = time.perf_counter()
        made = run(prompts)
        seconds = time.perf_counter() - start
        if made != [*NEW]:
            raise ValueError(f"{NEW} tokens were asked for, but the engine generated {made}")
        return {"seconds": seconds, "facts": told}

    return sample
