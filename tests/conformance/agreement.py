"""What optimize() does to one small model, and whether its results are those of transformers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from small_models import architectures, build, inputs
from torch import nn

import hfaccel

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}
# Largest distance from eager float32, relative to the length of the result. float32 differs by the order of
# summation; the others round each number of 64-wide random layers, the worst case.
TOLERANCE = {"float32": 2e-5, "bfloat16": 0.045, "int8": 0.14}  # cosines of 0.999 and 0.99


@dataclass
class Verdict:
    """One row of the table. `problem`: what is wrong, "" for nothing."""

    kind: str
    task: str = ""
    cls: str = ""
    packed: int = 0
    folded: int = 0  # batch norms
    fused: list[str] = field(default_factory=list)
    stock: dict[str, int] = field(default_factory=dict)
    distance: dict[str, float] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    not_built: str = ""
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def judge(kind: str, level: int = 0, precisions: tuple[str, ...] = tuple(PRECISIONS)) -> Verdict:
    task, cls = architectures()[kind]
    verdict = Verdict(kind, task, cls)
    try:
        model = build(kind, level)
        given = [inputs(model, side, seed) for seed, side in enumerate(("right", "left", "none"))]
        if "attention_mask" in given[2]:
            del given[2]["attention_mask"]
        expected = [run(model, each) for each in given]
        spread = max(
            distance(run(model, each), first, each) for each, first in zip(given, expected, strict=True)
        )
    except Exception as error:  # noqa: BLE001 (whatever stock transformers raises, we have nothing to compare)
        verdict.not_built = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
            :160
        ]
        return verdict
    if spread > TOLERANCE["float32"] or spread != spread:
        verdict.not_built = f"stock results differ from call to call by {spread:.1e}, or are no numbers"
        return verdict
    for precision in precisions:
        compare(verdict, model, given, expected, precision)
    return verdict


def compare(
    verdict: Verdict, model: nn.Module, given: list[Any], expected: list[Any], precision: str
) -> None:
    fast = hfaccel.optimize(copy.deepcopy(model), **PRECISIONS[precision])
    far = 0.0
    for each, wanted in zip(given, expected, strict=True):
        far = max(far, distance(run(fast, each), wanted, each))
    verdict.distance[precision] = far
    if not far <= TOLERANCE[precision]:
        verdict.problem += f"{precision} differs by {far:.1e}; "
    report = hfaccel.report(fast)
    if precision == "float32":
        note(verdict, report)


def note(verdict: Verdict, report: Any) -> None:
    """What was done, and what was not."""
    verdict.stock = dict(report.stock_calls)
    for outcome in report.outcomes:
        if outcome.subject == "linear layer" and outcome.applied:
            verdict.packed += outcome.count
        elif outcome.subject == "batch norm" and outcome.applied:
            verdict.folded += outcome.count
        elif outcome.applied and outcome.subject.endswith(" layer"):
            verdict.fused.append(f"{outcome.subject.removesuffix(' layer')} x {outcome.count}")
        elif not outcome.applied:
            verdict.reasons.append(f"{outcome.subject}: {outcome.reason}")


def run(model: nn.Module, given: dict[str, Any]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    with torch.inference_mode():
        return dict(tensors(model(**{name: value.clone() for name, value in given.items()})))


def tensors(result: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of numbers in what a model returned, by its place; caches are left out."""
    if isinstance(result, torch.Tensor):
        if result.is_floating_point():
            yield name, result.float()
    elif isinstance(result, dict) or hasattr(result, "items"):
        for key, value in result.items():
            if key != "past_key_values":
                yield from tensors(value, f"{name}.{key}")
    elif isinstance(result, list | tuple):
        for key, value in enumerate(result):
            yield from tensors(value, f"{name}.{key}")


def distance(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], given: dict[str, Any]) -> float:
    """The largest of |got - wanted| / |wanted|, where tokens are real."""
    if got.keys() != wanted.keys():
        return float("inf")
    far = 0.0
    for name, expected in wanted.items():
        result = got[name]
        if result.shape != expected.shape:
            return float("inf")
        mask = given.get("attention_mask")
        if mask is not None and expected.shape[:2] == mask.shape:
            result, expected = result[mask.bool()], expected[mask.bool()]
        usual = expected.isfinite()
        if not torch.equal(result.isfinite(), usual):
            return float("inf")
        result, expected = result[usual], expected[usual]
        size = expected.norm().item()
        if expected.numel():
            far = max(far, ((result - expected).norm() / max(size, 1e-6)).item())
    return far
