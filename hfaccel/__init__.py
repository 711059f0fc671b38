"""hfaccel: run Hugging Face Transformers on server CPUs as fast as the machine allows.

    import hfaccel
    model = hfaccel.optimize(model)     # same results, faster
    print(hfaccel.report(model))        # what was done, what was not, and why

Importing this package imports no torch and changes nothing: the public names are resolved when used.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing alone would cost half of this package's import
if TYPE_CHECKING:
    from hfaccel import memory as memory
    from hfaccel import serve as serve
    from hfaccel import tune as tune
    from hfaccel.comparison import compare as compare
    from hfaccel.configuration import configure as configure
    from hfaccel.errors import HfaccelError as HfaccelError
    from hfaccel.information import info as info
    from hfaccel.optimization import optimize as optimize
    from hfaccel.optimization import pipeline as pipeline
    from hfaccel.optimization import restore as restore
    from hfaccel.pipelines.profile import profile as profile
    from hfaccel.reporting import report as report
    from hfaccel.saving import load as load
    from hfaccel.saving import save as save

__version__ = "0.1.0"

# public name -> (module, attribute); an empty attribute is the module itself
_PUBLIC = {
    "HfaccelError": ("hfaccel.errors", "HfaccelError"),
    "compare": ("hfaccel.comparison", "compare"),
    "configure": ("hfaccel.configuration", "configure"),
    "info": ("hfaccel.information", "info"),
    "load": ("hfaccel.saving", "load"),
    "memory": ("hfaccel.memory", ""),
    "optimize": ("hfaccel.optimization", "optimize"),
    "pipeline": ("hfaccel.optimization", "pipeline"),
    "profile": ("hfaccel.pipelines.profile", "profile"),
    "report": ("hfaccel.reporting", "report"),
    "restore": ("hfaccel.optimization", "restore"),
    "serve": ("hfaccel.serve", ""),
    "save": ("hfaccel.saving", "save"),
    "tune": ("hfaccel.tune", ""),
}
__all__ = [*sorted(_PUBLIC)]


def __getattr__(name: str) -> object:
    import importlib

    if name not in _PUBLIC:
        raise AttributeError(
            f"module 'hfaccel' has no attribute {name!r}; public names: {', '.join(__all__)}"
        )
    module_name, attribute = _PUBLIC[name]
    module = importlib.import_module(module_name)
    value = getattr(module, attribute) if attribute else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
