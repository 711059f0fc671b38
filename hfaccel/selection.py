"""backend="auto" with samples: every backend that can run is measured on the user's model and inputs.

Each candidate gets a copy of the model and takes turns with the model itself. A candidate whose results
differ by more than its precision allows is discarded. The fastest candidate wins if it is faster than the
model itself on the whole and slower on none of the samples; otherwise nothing changes. The cache of exports
keeps the choice: of many processes that start at once, one measures and the others wait.
"""

from __future__ import annotations

import copy
import datetime
import json
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from hfaccel import export
from hfaccel.backends import BACKENDS, Backend, Options
from hfaccel.backends.base import version
from hfaccel.cache import Cache
from hfaccel.errors import UsageError
from hfaccel.host import read_host
from hfaccel.outcome import Outcome
from hfaccel.precision import Precision

BUDGET = 8.0  # seconds
WORTH = 1.03  # a gain below this is noise
NOT_SLOWER = 0.97  # on any sample
ROUNDS = (3, 25)  # turns of a candidate with the model itself, per sample: least, most
CALLS = 3  # the least for a candidate: one for its results, two for a turn with the model itself
SETTLE = 0.005  # seconds: threads of the other engine spin for a while after their last work
BERT_BASE = 110e6  # parameters of the model for which `Backend.preparation` is given


@dataclass(frozen=True)
class Measured:
    """One candidate."""

    backend: str
    speeds: tuple[float, ...] = ()  # how many times faster than the model itself, by sample
    error: float = 0.0  # relative, of the results
    problem: str = ""  # why there are no speeds

    @property
    def speed(self) -> float:
        return math.exp(statistics.fmean(map(math.log, self.speeds))) if self.speeds else 0.0


@dataclass(frozen=True)
class Verdict:
    winner: str  # "" where the model is best left as it is
    outcomes: tuple[Outcome, ...]


def select(model: nn.Module, options: Options, budget: float = BUDGET) -> Verdict:
    """Measure for about `budget` seconds, or read an earlier choice. `options.samples` must not be empty."""
    candidates, rejected = _candidates(model)
    results: list[Measured] = []

    def make(folder: Path) -> None:
        if not results:  # otherwise this is the second folder, after a full disk
            results.extend(measure(model, candidates, options, budget))
        document = {"date": datetime.date.today().isoformat(), "measured": [asdict(one) for one in results]}
        (folder / "choice.json").write_text(json.dumps(document))

    try:
        with Cache().entry(_key(model, candidates, options, budget), make) as entry:
            document = json.loads((entry.path / "choice.json").read_text())
    except OSError as error:  # neither the cache nor a temporary folder can be written
        measured = results or measure(model, candidates, options, budget)
        source = f"measured just now; not kept: {error.strerror or error}"
    else:
        measured = [Measured(**{**one, "speeds": tuple(one["speeds"])}) for one in document["measured"]]
        source = f"measured just now; {entry.problem or f'kept in {entry.path}'}"
        if entry.found:
            source = f"measured on {document['date']}, kept in {entry.path}; remove that to measure again"
    winner = decide(measured)
    told = (explain(one, winner) for one in measured)
    return Verdict(winner, (Outcome("choice of backend", bool(winner), source), *told, *rejected))


def decide(measured: Iterable[Measured]) -> str:
    """The fastest candidate that gains enough and is slower on no sample; "" where there is none."""
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
        stock = Stock.of(model, options.samples)
        for number, backend in enumerate(candidates):
            bar.set_postfix_str(backend.name)
            left = end - time.monotonic()
            needed = backend.preparation * max(0.2, size) + CALLS * stock.seconds
            if needed > left:
                problem = f"not measured: it takes about {needed:.0f} s, but {max(left, 0):.0f} s were left"
                results.append(
                    Measured(backend.name, problem=f"{problem}; pass budget={budget + needed:.0f}")
                )
            else:
                results.append(_measure(stock, backend, options, end, len(candidates) - number))
            bar.update()
    return results


@dataclass(frozen=True)
class Stock:
    """The model itself."""

    model: nn.Module
    outputs: tuple[object, ...]  # for the samples
    seconds: float  # for all samples

    @classmethod
    def of(cls, model: nn.Module, samples: Sequence[export.Sample]) -> Stock:
        try:
            with torch.inference_mode():
                outputs = tuple(model(**sample) for sample in samples)
                return cls(model, outputs, sum(_time(model, sample) for sample in samples))
        except Exception as error:
            raise UsageError(
                "a sample must be an input of the model, but the model raised "
                f"{type(error).__name__}: {str(error)[:200]}; pass what its tokenizer returns"
            ) from error


def _measure(stock: Stock, backend: Backend, options: Options, end: float, sharing: int) -> Measured:
    try:
        other = copy.deepcopy(stock.model)
        outcomes = backend.transform(other, options)
        if not any(outcome.applied for outcome in outcomes):
            return Measured(backend.name, problem="; ".join(outcome.reason for outcome in outcomes))
        error = _error(stock, other, options.samples)
        allowed = export.TOLERANCE[options.precision or Precision.FLOAT32]
        if error > allowed:
            problem = f"discarded: its results differ by {error:.1e}, and {allowed:.0e} is allowed"
            return Measured(backend.name, error=error, problem=problem)
        share = (end - time.monotonic()) / sharing / len(options.samples)
        speeds = tuple(_speed(stock.model, other, sample, share, end) for sample in options.samples)
    except Exception as problem:  # noqa: BLE001 (a foreign engine that raises is one candidate less)
        return Measured(backend.name, problem=f"discarded: {type(problem).__name__}: {str(problem)[:200]}")
    return Measured(backend.name, speeds, error)


def _error(stock: Stock, other: nn.Module, samples: Sequence[export.Sample]) -> float:
    """The largest relative error of `other` over the samples."""
    with torch.inference_mode():
        return max(
            export.difference(expected, other(**sample), sample.get("attention_mask"))
            for expected, sample in zip(stock.outputs, samples, strict=True)
        )


def _speed(stock: nn.Module, other: nn.Module, sample: export.Sample, seconds: float, end: float) -> float:
    """The median of stock's time over the other's. They take turns for `seconds`, at least once."""
    share = time.monotonic() + seconds
    ratios: list[float] = []
    with torch.inference_mode():
        while _another(len(ratios), time.monotonic(), share, end):
            turns = [stock, other] if len(ratios) % 2 else [other, stock]
            times = {id(turn): _time(turn, sample) for turn in turns}
            ratios.append(times[id(stock)] / times[id(other)])
    return statistics.median(ratios)


def _another(turns: int, now: float, share: float, end: float) -> bool:
    """Whether to take another turn: the first always, some until the end, more within the share."""
    least, most = ROUNDS
    return not turns or (turns < least and now < end) or (turns < most and now < share)


def _time(call: nn.Module, sample: export.Sample) -> float:
    time.sleep(SETTLE)
    start = time.perf_counter()
    call(**sample)
    return time.perf_counter() - start


def _candidates(model: nn.Module) -> tuple[list[Backend], tuple[Outcome, ...]]:
    """The backends that can run this model here, in ascending order of preparation, and why others cannot."""
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
    engines = ("onnxruntime", "openvino", "nncf", "intel_extension_for_pytorch")
    return export.key(
        export.fingerprint(model),
        choice=[backend.name for backend in candidates],
        model=[type(model).__qualname__, str(getattr(model, "config", ""))],
        shapes=[{name: list(tensor.shape) for name, tensor in sample.items()} for sample in options.samples],
        precision=(options.precision or Precision.FLOAT32).short,
        options=[options.huge_pages, options.unpad, budget],
        versions={package: version(package) for package in ("hfaccel", "torch", "transformers", *engines)},
        machine=[host.processor.model_name, list(host.limits.affinity), host.limits.cpu_quota],
        threads=torch.get_num_threads(),
    )
