"""Private parts of transformers' models. transformers is imported by whoever has a model of it, not here."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from types import FunctionType
from typing import TYPE_CHECKING, Any

from hfaccel.upstream.probe import Need, Probe

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

of_models = partial(Probe, after="transformers.modeling_utils")

# The attention of a model

# How a config names its attention, which it keeps under a name that begins so.
CHOICE = "_attn_implementation"
INTERFACE = ("_global_mapping", "_local_mapping")  # tables of functions, by the name of an implementation


def _keeps_choice(config_class: Callable[[], object]) -> bool:
    config = config_class()
    setattr(config, CHOICE, "sdpa")
    return getattr(config, CHOICE) == "sdpa" and any(
        name.startswith(CHOICE) and value == "sdpa" for name, value in vars(config).items()
    )


ATTENTION = of_models(
    "transformers.configuration_utils",
    "PreTrainedConfig",
    f"`{CHOICE}`, the attention that a model uses",
    (Need.LAYERS, Need.SAVING),
    _keeps_choice,
)
FUNCTIONS = of_models(
    "transformers.modeling_utils",
    "ALL_ATTENTION_FUNCTIONS",
    "the tables of attention functions",
    (Need.LAYERS,),
    lambda found: all(isinstance(getattr(found, name), dict) for name in INTERFACE),
)


def attention_of(config: object) -> object:
    return getattr(config, CHOICE)


# What is collected during a call, by hooks of transformers' own

COLLECTING = "transformers.utils.output_capturing"  # the module of the hooks
COLLECTOR = Probe(
    COLLECTING,
    "_active_collector",
    "what transformers collects in this call",
    (Need.COLLECTING,),
    lambda found: found.get() is None or isinstance(found.get(), dict),
    after=COLLECTING,
)


def collected() -> tuple[str, ...] | None:
    """Names of what is collected now, in this thread; None where nobody can tell."""
    collector = COLLECTOR.value() if COLLECTOR.is_due else None
    return None if collector is None else tuple(collector.get() or ())


# The cache of a decoder

CACHE_MODULE = "transformers.cache_utils"


def _is_list_of_layers(cache_class: Callable[[], Any]) -> bool:
    cache, module = cache_class(), import_module(CACHE_MODULE)
    layer, sliding = module.DynamicLayer(), module.DynamicSlidingWindowLayer(sliding_window=4)
    known = (cache.layers == [], cache.offloading is False, hasattr(cache, "layer_class_to_replicate"))
    plain = (layer.is_initialized is False, layer.is_sliding is False, layer.keys is None)
    of_windows = (sliding.cumulative_length == 0, sliding.record_past is False, sliding.sliding_window == 4)
    return all((*known, *plain, *of_windows, callable(layer.lazy_initialization)))


CACHES = of_models(
    CACHE_MODULE,
    "DynamicCache",
    "the layers of a cache, and what they keep",
    (Need.CACHES,),
    _is_list_of_layers,
)


@cache
def cache_classes() -> tuple[type[Any], type[Any], type[Any]]:
    """The cache that grows, and its layers: of all tokens, of those in a window."""
    module = import_module(CACHE_MODULE)
    return CACHES.value(), module.DynamicLayer, module.DynamicSlidingWindowLayer


def _is_pair_of_caches(pair_class: Callable[[Any, Any], Any]) -> bool:
    cache_class = import_module(CACHE_MODULE).DynamicCache
    own, of_encoder = cache_class(), cache_class()
    pair = pair_class(own, of_encoder)
    kept = pair.self_attention_cache is own and pair.cross_attention_cache is of_encoder
    return kept and pair.is_updated == {}


PAIRS = of_models(
    CACHE_MODULE,
    "EncoderDecoderCache",
    "the caches of a decoder's own tokens and of an encoder's",
    (Need.CACHES,),
    _is_pair_of_caches,
)


def _counts_tokens(layer_class: Callable[..., Any]) -> bool:
    layer, states = layer_class(max_cache_len=5), import_module("torch").empty(2, 3, 0, 4)
    before = layer.is_initialized
    layer.lazy_initialization(states, states)
    known = layer.keys.shape == (2, 3, 5, 4) == layer.values.shape and layer.max_cache_len == 5
    return before is False and known and layer.cumulative_length.tolist() == 0


STATIC = of_models(
    CACHE_MODULE,
    "StaticLayer",
    "a layer of a static cache, and how it counts its tokens",
    (Need.CACHES,),
    _counts_tokens,
)


@cache
def static_classes() -> tuple[type[Any], type[Any]]:
    """The cache of a fixed size, and its layers of all tokens."""
    return import_module(CACHE_MODULE).StaticCache, STATIC.value()


def stock_generate() -> Callable[..., Any]:
    """transformers' own method, which a model's class inherits."""
    generate: Callable[..., Any] = import_module("transformers.generation").GenerationMixin.generate
    return generate


# Models from configs and checkpoints

FROM_CONFIG = of_models(
    "transformers.modeling_utils",
    "PreTrainedModel._from_config",
    "a model without weights",
    (Need.SAVING,),
    lambda found: isinstance(found.__func__, FunctionType),
)
FROM_PRETRAINED = of_models(
    "transformers.modeling_utils",
    "PreTrainedModel",
    "`from_pretrained`, a method of the class, which hfaccel.auto wraps",
    (Need.AUTO,),
    lambda found: isinstance(vars(found)["from_pretrained"], classmethod),
)


def from_config(cls: type[PreTrainedModel], config: PreTrainedConfig, **settings: object) -> PreTrainedModel:
    return cls._from_config(config, **settings)


def revision_of(config: object) -> str | None:
    """Of the checkpoint that the model was loaded from; None where that is not known."""
    return getattr(config, "_commit_hash", None)
