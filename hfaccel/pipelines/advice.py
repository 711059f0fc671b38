"""What would make a profiled pipeline faster: one function for each piece of advice, "" if it would not help.

The largest usual gain comes first.
"""

from __future__ import annotations

from collections.abc import Callable

from hfaccel.pipelines.figures import Figures

PADDING, WAITING, FINISHING, COMPUTING = 0.10, 0.03, 0.10, 0.75  # shares from which advice is given
SHORT = 128  # tokens; one shorter sequence alone does not keep the cores busy


def optimizing(profile: Figures) -> str:
    if profile.loop != "transformers":
        return ""
    return "pipe = hfaccel.optimize(pipe): packed and fused layers, batches of similar lengths, no waiting"


def own_loop(profile: Figures) -> str:
    return f"transformers' own loop ran: {profile.why_stock}" if profile.why_stock else ""


def batching(profile: Figures) -> str:
    if (
        profile.lengths
        and profile.rows < 2 <= profile.inputs
        and profile.tokens / len(profile.lengths) < SHORT
    ):
        return "batch_size=32: most inputs are short, and went through the model one by one"
    return ""


def padding(profile: Figures) -> str:
    if profile.padding < PADDING or profile.loop == "transformers":
        return ""
    return f"{profile.padding:.0%} of the positions are padding: give more inputs at once"


def tensors(profile: Figures) -> str:
    if profile.share(profile.finish.waited) < FINISHING or profile.task != "feature-extraction":
        return ""
    return "return_tensors=True: nested lists of floats are slow to make and take thirty times the memory"


def tokenizing(profile: Figures) -> str:
    if profile.share(profile.prepare.waited) < WAITING or profile.loop == "transformers":
        return ""
    if not profile.fast_tokenizer:
        return "a fast tokenizer: AutoTokenizer.from_pretrained(..., use_fast=True)"
    return "a larger batch_size: inputs are then prepared while the model computes"


def precision(profile: Figures) -> str:
    if profile.share(profile.compute.total) < COMPUTING or profile.dtype != "float32":
        return ""
    return "dtype=torch.bfloat16 or quantization='int8' with hfaccel.optimize, if their accuracy suffices"


ADVICE: list[Callable[[Figures], str]] = [
    optimizing,
    own_loop,
    batching,
    padding,
    tensors,
    tokenizing,
    precision,
]


def advise(profile: Figures) -> tuple[str, ...]:
    return tuple(advice for advice in (check(profile) for check in ADVICE) if advice)
