"""`import hfaccel.auto`: configure() as soon as there is a torch, and optimize what transformers loads.

An unchanged program gets this from `hfaccel-run --optimize` or the variable HFACCEL_AUTO=1, which a file
of this package in site-packages (hfaccel.pth) reads at every start of Python. Nothing is imported before
the program itself imports it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hfaccel.apply.hooks import after_import, keep_affinity_over_import

if TYPE_CHECKING:
    from hfaccel.upstream import Probe


def install() -> None:
    """Wrap `from_pretrained` and `pipeline` of transformers, now or when they are imported. Once."""
    keep_affinity_over_import()  # before configure(), which counts the CPUs of the mask
    after_import("torch", _configure)
    after_import("transformers.modeling_utils", _wrap_from_pretrained)
    after_import("transformers.pipelines", _wrap_pipeline)


def _configure() -> None:
    from hfaccel.configuration import configure

    try:
        configure()
    except Exception as error:  # noqa: BLE001 - the program did not ask for this: it must run as without it
        print(f"hfaccel: this process stays as it is: {error}", file=sys.stderr)


def _wrap_from_pretrained() -> None:
    from hfaccel.upstream.of_transformers import FROM_PRETRAINED

    if not _is_there(FROM_PRETRAINED):
        return
    model_class = FROM_PRETRAINED.value()
    load = model_class.__dict__["from_pretrained"].__func__

    @functools.wraps(load)
    def from_pretrained(cls: type, *arguments: Any, **keywords: Any) -> object:
        loaded = _outermost(functools.partial(load, cls, *arguments, **keywords))
        if isinstance(loaded, tuple):  # with output_loading_info
            return (_optimized(loaded[0]), *loaded[1:])
        return _optimized(loaded)

    model_class.from_pretrained = classmethod(from_pretrained)


def _wrap_pipeline() -> None:
    from hfaccel.upstream.of_pipelines import MAKER

    if not _is_there(MAKER):
        return
    module: Any = sys.modules["transformers.pipelines"]
    make = MAKER.value()

    @functools.wraps(make)
    def pipeline(*arguments: object, **keywords: object) -> object:
        made = make(*arguments, **keywords)  # what it loads comes optimized; a given model may not be
        made.model = _optimized(made.model)
        return made

    module.pipeline = pipeline


def _is_there(probe: Probe) -> bool:
    if probe.problem:
        print(f"hfaccel: models are not optimized as they are loaded: {probe.problem}", file=sys.stderr)
    return not probe.problem


_loading = threading.local()


def _outermost(load: Callable[[], object]) -> object:
    """Models that load others as their parts are optimized once, as a whole."""
    _loading.depth = getattr(_loading, "depth", 0) + 1
    try:
        return load()
    finally:
        _loading.depth -= 1


def _optimized(model: object) -> object:
    from hfaccel.optimization import optimize

    if getattr(_loading, "depth", 0):
        return model
    try:
        # Programs that do not know of this may read hidden states at padding: they are computed.
        return optimize(model, inplace=True, unpad=False)
    except Exception as error:  # noqa: BLE001 - the program did not ask for this: it must run as without it
        print(f"hfaccel: {type(model).__name__} stays as it is: {error}", file=sys.stderr)
        return model


install()
