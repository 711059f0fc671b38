"""backend="auto" with samples: every backend that can run is measured on the user's model and inputs.

Each candidate gets a copy of the model and takes turns with the model itself. One whose results differ by
more than its precision allows is discarded. The fastest wins if it is faster than the model itself on the
whole and slower on none of the samples; otherwise nothing changes. The answer is kept in the cache of
exports: of many processes that start at once, one measures and the others wait for it.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends import BACKENDS, Backend, Options
from hfaccel.backends.base import precision_of, version
from hfaccel.cache import Cache
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.outcome import Outcome

BUDGET = 8.0  # seconds
WORTH = 1.03  # a gain below this is noise
NOT_SLOWER = 0.97  # on any sample
ROUNDS = (3, 25)  # turns of a candidate with the model itself, per sample: least, most
SETTLE = 0.005  # seconds: threads of the other engine spin for a while after their last work
BERT_BASE = 110e6  # parameters; `Backend.preparation` is told for it

Call = Callable[[], Any]


@dataclass(frozen=True)
class Measured:
    """One candidate: how many times faster than the model itself on each sample, or why that is not known."""

    backend: str
    speeds: tuple[float, ...] = ()
    error: float = 0.0  # relative, of the results
    problem: str = ""

    @property
    def speed(self) -> float:
        return math.exp(statistics.fmean(map(math.log, self.speeds))) if self.speeds else 0.0


@dataclass(frozen=True)
class Verdict:
    winner: str  # "" where the model is best left as it is
    outcomes: tuple[Outcome, ...]


def select(model: nn.Module, options: Options, budget: float = BUDGET) -> Verdict:
    """Measure for about `budget` seconds, or remember. `options.samples` must not be empty."""
    candidates, rejected = _candidates(model)

    def make(folder: Path) -> None:
        _check_samples(model, options.samples)
        results = measure(model, candidates, options, budget)
        document = {"date": datetime.date.today().isoformat(), "measured": [asdict(one) for one in results]}
        (folder / "choice.json").write_text(json.dumps(document))

    with Cache().entry(_key(model, candidates, options, budget), make) as entry:
        document = json.loads((entry.path / "choice.json").read_text())
    measured = [Measured(**{**one, "speeds": tuple(one["speeds"])}) for one in document["measured"]]
    if entry.found:
        source = f"measured on {document['date']}, kept in {entry.path}; remove that to measure again"
    else:
        source = f"measured just now; {entry.problem or f'kept in {entry.path}'}"
    winner = decide(measured)
    told = (explain(one, winner) for one in measured)
    return Verdict(winner, (Outcome("choice of backend", bool(winner), source), *told, *rejected))


def _check_samples(model: nn.Module, samples: Iterable[export.Sample]) -> None:
    """Raise UsageError for a sample that the model itself cannot compute: it would discard every backend."""
    for sample in samples:
        try:
            with torch.inference_mode():
                model(**sample)
        except Exception as error:
            names = ", ".join(sample) or "none"
            raise UsageError(
                f"a sample must be inputs that the model takes, but with {names} it raised "
                f"{type(error).__name__}: {error}; pass what tokenizer(text, return_tensors='pt') returns"
            ) from error


def decide(measured: Iterable[Measured]) -> str:
    """The fastest that is worth it and slower nowhere; "" where there is none."""
    good = [one for one in measured if one.speed >= WORTH and min(one.speeds) >= NOT_SLOWER]
    return max(good, key=lambda one: one.speed).backend if good else ""


def explain(one: Measured, winner: str) -> Outcome:
    subject = f"backend {one.backend}"
    if one.problem:
        return Outcome(subject, False, one.problem)
    speeds = ", ".join(f"{speed:.2f}" for speed in one.speeds)
    text = f"{one.speed:.2f} times the model's own speed ({speeds}), results differ by {one.error:.0e}"
    if one.backend == winner:
        return Outcome(subject, True, text)
    if one.speeds and min(one.speeds) < NOT_SLOWER:
        return Outcome(subject, False, f"{text}: slower on some sample")
    return Outcome(subject, False, f"{text}: {f'{winner} is faster' if winner else 'not worth it'}")


def measure(
    model: nn.Module, candidates: Sequence[Backend], options: Options, budget: float
) -> list[Measured]:
    """All candidates, one after the other, within about `budget` seconds; progress goes to a terminal."""
    from tqdm import tqdm

    end = time.monotonic() + budget
    size = sum(parameter.numel() for parameter in model.parameters()) / BERT_BASE
    results = []
    with tqdm(total=len(candidates), desc="hfaccel measures", leave=False, disable=None) as bar:
        for number, backend in enumerate(candidates):
            bar.set_postfix_str(backend.name)
            left = end - time.monotonic()
            needed = backend.preparation * max(0.2, size)
            if needed > left:
                problem = (
                    f"not measured: it takes about {needed:.0f} s to prepare, {max(left, 0):.0f} s were left"
                )
                results.append(
                    Measured(backend.name, problem=f"{problem}; pass budget={budget + needed:.0f}")
                )
            else:
                results.append(_measure(model, backend, options, end, len(candidates) - number))
            bar.update()
    return results


def _measure(model: nn.Module, backend: Backend, options: Options, end: float, sharing: int) -> Measured:
    try:
        other = copy.deepcopy(model)
        outcomes = backend.transform(other, options)
        if not any(outcome.applied for outcome in outcomes):
            return Measured(backend.name, problem="; ".join(outcome.reason for outcome in outcomes))
        error = export.trial(model, other, options.samples)
        allowed = export.TOLERANCE[precision_of(options)]
        if error > allowed:
            problem = f"discarded: its results differ by {error:.1e}, and {allowed:.0e} is allowed"
            return Measured(backend.name, error=error, problem=problem)
        share = (end - time.monotonic()) / sharing / len(options.samples)
        speeds = tuple(_speed(model, other, sample, share) for sample in options.samples)
    except Exception as problem:  # noqa: BLE001 (a foreign engine that raises is one candidate less)
        return Measured(backend.name, problem=f"discarded: {type(problem).__name__}: {str(problem)[:200]}")
    return Measured(backend.name, speeds, error)


def _speed(stock: Any, other: Any, sample: export.Sample, seconds: float) -> float:
    """Median of stock's time over the other's, taken in turn."""
    end = time.monotonic() + seconds
    ratios: list[float] = []
    with torch.inference_mode():
        while len(ratios) < ROUNDS[0] or (len(ratios) < ROUNDS[1] and time.monotonic() < end):
            turns = [stock, other] if len(ratios) % 2 else [other, stock]
            times = {id(turn): _time(turn, sample) for turn in turns}
            ratios.append(times[id(stock)] / times[id(other)])
    return statistics.median(ratios)


def _time(call: Any, sample: export.Sample) -> float:
    time.sleep(SETTLE)
    start = time.perf_counter()
    call(**sample)
    return time.perf_counter() - start


def _candidates(model: nn.Module) -> tuple[list[Backend], tuple[Outcome, ...]]:
    """What can run this model here, quickest prepared first; and why the others cannot."""
    problems = {
        backend: backend.available() or backend.supports(model)
        for backend in BACKENDS
        if backend.name != "eager"
    }
    able = sorted((one for one in problems if not problems[one]), key=lambda one: one.preparation)
    rejected = (Outcome(f"backend {one.name}", False, text) for one, text in problems.items() if text)
    return able, tuple(rejected)


def _key(model: nn.Module, candidates: Sequence[Backend], options: Options, budget: float) -> str:
    host = read_host()
    packages = ("hfaccel", "torch", "transformers", "onnxruntime", "openvino", "nncf")
    return export.key(
        export.fingerprint(model),
        choice=[backend.name for backend in candidates],
        model=[type(model).__qualname__, str(getattr(model, "config", ""))],
        shapes=[{name: list(tensor.shape) for name, tensor in sample.items()} for sample in options.samples],
        precision=precision_of(options),
        options=[options.huge_pages, options.unpad, budget],
        versions={package: version(package) for package in packages},
        machine=[host.processor.model_name, list(host.limits.affinity), host.limits.cpu_quota],
        threads=torch.get_num_threads(),
    )
