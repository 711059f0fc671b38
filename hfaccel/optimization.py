"""optimize(), pipeline() and restore()."""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn

from hfaccel import engine
from hfaccel.backends import BACKENDS, Backend, Options, by_name
from hfaccel.configuration import configure_for_model, weights_placed
from hfaccel.errors import HfaccelError, ModelError, UsageError
from hfaccel.generators import kept_as_found
from hfaccel.outcome import Outcome
from hfaccel.plan.memory import parse_huge_pages
from hfaccel.precision import asked_for
from hfaccel.reporting import KEY, Record, engine_of, mark, model_of, record_of
from hfaccel.selection import BUDGET, select

if TYPE_CHECKING:
    from transformers.pipelines import Pipeline

T = TypeVar("T")
KV_CACHES = ("auto", "int8")


def optimize(
    model_or_pipeline: T,
    *,
    dtype: torch.dtype | None = None,
    quantization: str | None = None,
    backend: str = "auto",
    unpad: bool | str = "auto",
    kv_cache: str = "auto",
    huge_pages: str = "auto",
    num_threads: int | None = None,
    configure: bool | str = "auto",
    inplace: bool = False,
    strict: bool = False,
    sample: object = None,
    budget: float = BUDGET,
) -> T:
    """Return the model, or the transformers pipeline, ready to run faster with equal results.

    A pipeline also gets hfaccel's loop
    (docs/pipelines.md). float32 results stay equal up to rounding.
    What cannot be improved is left as it is, with the reason in `hfaccel.report`; `strict=True` raises
    HfaccelError instead. An optimized model is returned unchanged, and so is one that cannot be improved.

    In float32 there is one copy of the weights. With `inplace=False` the result is a new tree of modules
    around the same parameters and linear layers, and the given model works as before, on the packed
    weights too. With `inplace=True` the given model itself is changed. With a `dtype` or `quantization`
    that rounds, the result has weights of its own, and the given model keeps its values.

    `dtype`: None multiplies in the checkpoint's type, torch.bfloat16 in bfloat16; residual stream, norms and
    sums stay float32, and so do the results. `quantization`: "int8" multiplies in int8, weights rounded per
    output channel, activations per token; layers that would lose too much, tried on `sample` or else without
    data, stay in bfloat16. "int8-weight-only" and "int4-weight-only" round the weights of linear layers in
    groups of 64 inputs, to 8.5 and 4.5 bits per weight, and activations to 8 bits with a scale for each
    group: for generated text, which is limited by the bytes of the weights. No layer stays in more bits; a
    `sample` tells "int4-weight-only" which inputs of a weight count. Weights that a checkpoint has
    quantized keep its numbers (docs/generation.md). `unpad`: "auto" leaves padding out of the computation
    where nobody can mistake it for results: in texts whose mask hides nothing but the padding token, behind
    the text; not where answers to questions are sought, at every position, or results depend on padding. True
    leaves out whatever the mask hides, for callers who read nothing there; False computes it. Hidden states
    of what is left out are zero. `kv_cache`: "int8" keeps the keys and values of fused decoder layers in 8
    bits, with a factor for each token of each head; "auto" keeps them in the type of attention.
    `backend`: "auto" or a name from `hfaccel.backends.BACKENDS`. With a `sample` of typical inputs (what a
    tokenizer returned as tensors, or several of those) "auto" measures all that are installed on this
    model for about `budget` seconds and remembers the fastest; without, it takes hfaccel's own engine.
    `huge_pages`: "auto", "thp" or "off". `num_threads`: compute threads, for the whole process. `configure`:
    "auto" sets up of the process what is harmless to the rest of the program, once: torch's threads,
    glibc's thresholds and forks. True does all that `hfaccel.configure` does, False no more than
    `num_threads` says.

    Raises ModelError for an object that is neither a torch.nn.Module nor a pipeline holding one,
    UsageError for a value that breaks a rule.
    """
    asked_for(dtype, quantization)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not budget > 0:
        raise UsageError(f"`budget > 0` seconds must hold, but got {budget!r}")
    if unpad not in (True, False, "auto"):
        raise UsageError(f"unpad must be True, False or 'auto', but got {unpad!r}")
    if kv_cache not in KV_CACHES:
        raise UsageError(f"kv_cache must be one of {', '.join(KV_CACHES)}, but got {kv_cache!r}")
    wanted_pages = None if huge_pages == "auto" else parse_huge_pages(huge_pages)
    chosen = None if backend == "auto" else by_name(backend)
    samples = _samples(sample)
    model = model_of(model_or_pipeline)
    asked = {} if num_threads is None else {"threads": num_threads}
    configuration = configure_for_model(configure, **asked)
    pages = wanted_pages or configuration.plan["huge_pages"].value
    options = Options(pages != "off", dtype, quantization, unpad, samples, kv_cache)
    with kept_as_found(), weights_placed():
        fast = _optimize_model(model, chosen, options, inplace=inplace, strict=strict, budget=budget)
    if model is model_or_pipeline:
        return cast(T, fast)
    if not isinstance(model, nn.Module):  # another engine's model, as it is
        return model_or_pipeline
    return cast(T, _with_loop(model_or_pipeline, fast, inplace))


def _optimize_model(
    model: nn.Module, chosen: Backend | None, options: Options, *, inplace: bool, strict: bool, budget: float
) -> nn.Module:
    record = record_of(model)
    if record is not None and record.backend:
        _check_same(record, options)
        return model
    problem = _problem(model)
    backend, rejected = _select(chosen, model, options, budget) if not problem else (None, ())
    if backend is None:
        reasons = rejected or (Outcome("model", False, problem),)
        if strict:
            raise HfaccelError("; ".join(outcome.reason for outcome in reasons))
        mark(model, Record("", reasons))
        return model
    result = (
        model
        if inplace
        else _copy_tree(model, share_linears=not (options.rounds or engine.keeps_linears(model)))
    )
    outcomes = backend.transform(result, options)
    if strict and not any(outcome.applied for outcome in outcomes):
        raise HfaccelError("nothing was applied: " + "; ".join(outcome.reason for outcome in outcomes))
    mark(
        result,
        Record(backend.name, (*rejected, *outcomes), options.precision, options.unpad, options.kv_cache),
    )
    return result


# Arguments of optimize() that pipeline() takes; all others are transformers.pipeline's.
_OPTIONS = (
    "quantization",
    "backend",
    "unpad",
    "kv_cache",
    "huge_pages",
    "num_threads",
    "configure",
    "strict",
    "sample",
    "budget",
)
# These as `dtype` say in what to multiply; others are types that transformers loads a checkpoint in.
_DTYPES = (torch.bfloat16, torch.float32)


def pipeline(task: str | None = None, model: Any = None, *, progress: bool = False, **settings: Any) -> Any:
    """`transformers.pipeline(task, model, **settings)` on the CPU, optimized; the same class and results.

    Those of `settings` that are arguments of `optimize` go there. `progress=True` shows a bar over the
    inputs of every list or stream; a call's own `progress=` overrides it. A model given as an object
    is not changed. Raises what transformers.pipeline and `optimize` raise.
    """
    import transformers

    options = {name: settings.pop(name) for name in _OPTIONS if name in settings}
    if settings.get("dtype") in _DTYPES:
        options["dtype"] = settings.pop("dtype")
    if "device_map" not in settings:
        settings.setdefault("device", "cpu")
    pipe = transformers.pipeline(task, model, **settings)
    fast = optimize(pipe, inplace=not isinstance(model, nn.Module), **options)
    if progress:
        fast.hfaccel_progress = True
    return fast


def restore(model_or_pipeline: T) -> T:
    """Undo optimize() in place: original classes and memory layout, values bit for bit. Values that a
    `dtype` or `quantization` has rounded stay rounded; the model that was given to optimize() has its own.

    A model that was not optimized is returned as it is.
    """
    model = model_of(model_or_pipeline)
    record = record_of(model)
    if record is not None:
        if record.backend:
            by_name(record.backend).restore(model)
        del model.__dict__[KEY]
    if not isinstance(model_or_pipeline, nn.Module):
        from hfaccel.pipelines import wrap

        wrap.unwrap(model_or_pipeline)
    return model_or_pipeline


def _check_same(record: Record, options: Options) -> None:
    if options.kv_cache not in ("auto", record.kv_cache):
        raise ModelError(
            f"the model was optimized with kv_cache={record.kv_cache!r} and cannot get {options.kv_cache!r}; "
            "optimize the model that you gave then, or hfaccel.restore(model) first"
        )
    if options.precision not in (None, record.precision):
        wanted = options.quantization or options.dtype
        raise ModelError(
            f"the model was optimized with {record.precision or 'its own precision'} and cannot get "
            f"{wanted}; optimize the model that you gave then, or hfaccel.restore(model) first"
        )


def _with_loop(pipe: Pipeline, model: nn.Module, inplace: bool) -> Pipeline:
    """The pipeline around `model`, in hfaccel's loop; a pipeline that has both already stays as it is."""
    from hfaccel.pipelines import scheduled, wrap  # transformers' pipelines take a second to import

    if pipe.model is model and isinstance(pipe, scheduled.Scheduled):
        return pipe
    result = pipe if inplace else copy.copy(pipe)
    result.model = model
    return wrap.wrap(result)


def _problem(model: nn.Module) -> str:
    """Why no backend may touch this model; "" for none."""
    if engine := engine_of(model):
        return f"{engine} runs it already; only the process is set up"
    tensors = list(itertools.chain(model.parameters(), model.buffers()))
    elsewhere = sorted({tensor.device.type for tensor in tensors} - {"cpu"})
    if not tensors:
        return "the model has no weights"
    if elsewhere:
        return (
            f"the model must be on the CPU, but part of it is on {', '.join(elsewhere)}; call model.to('cpu')"
        )
    if _trains(model):
        return "the model must be in evaluation mode, but model.training is True; call model.eval()"
    if any(hasattr(module, "_hf_hook") for module in model.modules()):
        return "accelerate moves its weights during a call; load the model without device_map"
    return ""


def _trains(model: nn.Module) -> bool:
    """Whether the model is in training mode. Where there are transformers' models in it they tell: those
    around them (SentenceTransformer) may switch to evaluation only when they are called."""
    base = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", ())
    inside = [module for module in model.modules() if isinstance(module, base)]
    return any(module.training for module in inside or [model])


def _samples(sample: object) -> tuple[Mapping[str, torch.Tensor], ...]:
    samples = tuple(sample) if isinstance(sample, list | tuple) else () if sample is None else (sample,)
    for one in samples:
        if not isinstance(one, Mapping) or not all(isinstance(value, torch.Tensor) for value in one.values()):
            raise UsageError(
                "a sample must be a mapping of names to tensors, as tokenizer(text, return_tensors='pt') "
                f"returns, or a list of those, but got {type(one).__name__}"
            )
    return tuple(dict(one) for one in samples)


def _select(
    chosen: Backend | None, model: nn.Module, options: Options, budget: float
) -> tuple[Backend | None, tuple[Outcome, ...]]:
    """The backend to use, None for none, and why not the others.

    With samples all are measured. Without, it is the first that needs no preparation and can run.
    """
    if chosen is None and options.samples:
        verdict = select(model, options, budget)
        return (by_name(verdict.winner) if verdict.winner else None), verdict.outcomes
    rejected: list[Outcome] = []
    for backend in [chosen] if chosen else [backend for backend in BACKENDS if not backend.preparation]:
        reason = backend.available() or backend.supports(model)
        if not reason:
            return (None if backend.name == "eager" and rejected else backend), tuple(rejected)
        rejected.append(Outcome(f"backend {backend.name}", False, reason))
    return None, tuple(rejected)


def _copy_tree(model: nn.Module, share_linears: bool) -> nn.Module:
    """New modules around the same parameters, buffers and, where they are shared, linear layers.

    Linear layers are shared where packing keeps their values: two trees with classes of their own
    around one packed weight would have to be kept in step.
    """
    linears = engine.holders(model) if share_linears else ()
    shared: dict[int, object] = {
        id(part): part for part in itertools.chain(model.parameters(), model.buffers(), linears)
    }
    try:
        return copy.deepcopy(model, shared)
    except Exception as error:
        raise ModelError(
            f"optimize() copies the module tree, but copying {type(model).__name__} failed "
            f"({type(error).__name__}: {error}); pass inplace=True to change the model itself"
        ) from error
