"""A model as a manifest, and a manifest as a model: classes by name, tensors by place, nothing executed."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch import nn

from hfaccel import engine, upstream
from hfaccel.errors import ModelError
from hfaccel.memory import Layout, held, view
from hfaccel.outcome import Outcome
from hfaccel.precision import named
from hfaccel.replacement import original
from hfaccel.reporting import Record, mark, record_of
from hfaccel.saving.files import Document, Unusable
from hfaccel.upstream.of_transformers import attention_of, from_config

FORMAT = 7  # rises with every change of these files, and of how engine.packed lays out weights
SWITCH = "set_attention_type"  # a method of BigBird's parts
ATTENTION = ("sdpa", "eager")  # others would be fetched from a hub


def made_for() -> dict[str, object]:
    """What packed weights and layers that are fused without a trial depend on: all of it must be equal."""
    return {
        "format": FORMAT,
        "hfaccel": version("hfaccel"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }


def check_made_for(manifest: Document) -> None:
    """Raises Unusable for what was saved for another CPU or by other versions."""
    if problem := upstream.problem(upstream.Need.SAVING):
        raise Unusable(problem)
    saved = manifest.get("made_for", {})
    here = made_for()
    other = [key for key in here if saved.get(key) != here[key]]
    if other:
        raise Unusable(
            "it was made for " + ", ".join(f"{key} {saved.get(key)} (here: {here[key]})" for key in other)
        )
    if engine.kernels_problem() and any(tensor["packed"] for tensor in manifest["tensors"]):
        raise Unusable(engine.kernels_problem())


def how_mapped(manifest: Document) -> str:
    saved, panel = manifest["kernels"], engine.panel()
    if saved["panel"] == panel:
        return "as they are"
    return (
        f"and copied, not shared: the kernels for {saved['set']} read {saved['panel']} columns at a time, "
        f"those for {engine.set_in_use()} {panel}; save the model again here"
    )


# A model -> a manifest


def describe(model: transformers.PreTrainedModel, record: Record, layout: Layout) -> Document:
    """All but the weights. Raises ModelError for a model that no manifest can stand for."""
    check_class(model)
    if layout.left:
        raise ModelError(f"save() takes a model of ordinary CPU tensors, but {layout.left} are not")
    offsets = {id(place.tensor): place.offset for place in layout.places}
    named = names(model)
    manifest = {
        "made_for": made_for(),
        "class": type(model).__name__,
        "attention": attention_of(model.config),
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "generation": _generation(model),
        "attention_types": _attention_types(model),
        "plan": engine.plan_of(model).to_dict(),
        "unpad": record.unpad,
        "kv_cache": record.kv_cache,
        "precision": record.precision.value if record.precision else None,
        "backend": record.backend,
        "kernels": {"set": engine.set_in_use(), "panel": engine.panel()},
        # but where in this process's memory they lie
        "outcomes": [line.to_dict() for line in record.outcomes if line.subject != "huge pages"],
        "tensors": [
            {"names": of_one, **_tensor(named[of_one[0]], offsets[id(named[of_one[0]])])}
            for of_one in _grouped(named)
        ],
    }
    _check_equal_structure(manifest, model, named)
    return manifest


def stock_class(model: nn.Module) -> type[nn.Module]:
    """The class that the model had before a region was made of it."""
    return original(type(model))


def check_class(model: nn.Module) -> None:
    cls = stock_class(model)
    config = getattr(model, "config", None)
    if getattr(transformers, cls.__name__, None) is not cls or config is None:
        raise ModelError(
            "save() takes a model of one of transformers' own classes, because load() makes it again from "
            f"class and config, but got a {cls.__module__}.{cls.__name__}"
        )
    if attention_of(config) not in ATTENTION:
        raise ModelError(
            f"save() takes a model whose attention is one of {', '.join(ATTENTION)}, but got "
            f"{attention_of(config)!r}; call model.set_attn_implementation first"
        )


def names(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by every name that they have, those that no checkpoint has included."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _grouped(named: dict[str, torch.Tensor]) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in named.items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


def _tensor(tensor: torch.Tensor, offset: int) -> dict[str, object]:
    bytes_of = held(tensor)
    return {
        "offset": offset,
        "packed": tensor.kind.label if isinstance(tensor, engine.PackedWeight) else None,
        "form": type(tensor).__name__ if isinstance(tensor, engine.PackedWeight) else None,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "stride": list(bytes_of.stride()),
        "parameter": isinstance(tensor, nn.Parameter),
        "requires_grad": tensor.requires_grad,
    }


def _attention_types(model: nn.Module) -> dict[str, str]:
    """Path of a part -> the attention to which it has switched all below it. BigBird does so by itself at the
    first short text, and stays so."""
    found: dict[str, str] = {}
    for path, part in model.named_modules():
        inside = any(path.startswith(f"{outer}." if outer else "") for outer in found)
        if not inside and hasattr(part, SWITCH) and isinstance(getattr(part, "attention_type", None), str):
            found[path] = part.attention_type
    return found


def _generation(model: transformers.PreTrainedModel) -> dict[str, object] | None:
    config = getattr(model, "generation_config", None)
    return None if config is None else dict(json.loads(config.to_json_string(use_diff=False)))


def _check_equal_structure(manifest: Document, model: nn.Module, named: dict[str, torch.Tensor]) -> None:
    """A part that was added, replaced or changed by hand would not come back."""
    skeleton = _skeleton(manifest)
    again = {name: tuple(tensor.shape) for name, tensor in names(skeleton).items()}
    saved = {name: tuple(tensor.shape) for name, tensor in named.items()}
    if again != saved:
        other = sorted(name for name in {*again, *saved} if again.get(name) != saved.get(name))
        raise ModelError(
            "save() takes a model with the parts that its config describes, but these tensors differ: "
            + ", ".join(other[:5])
        )
    made, changed = engine.plain_settings(skeleton), engine.plain_settings(model)
    other = [name for name, value in made.items() if changed.get(name) != value]
    # Numbers that appeared are notes of the model's own (Funnel's of the last length).
    other += [name for name, value in changed.items() if name not in made and callable(value)]
    if other:
        raise ModelError(
            "save() takes a model as its config describes it, but these classes or attributes of its parts "
            f"differ: {', '.join(name.lstrip('.') for name in sorted(other)[:5])}; set them back"
        )


# A manifest -> a model


def model_class(name: str, attention: str) -> type[transformers.PreTrainedModel]:
    """A class of transformers' own models. Raises Unusable for any other name that a file may hold."""
    cls = getattr(transformers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, transformers.PreTrainedModel):
        raise Unusable(f"transformers has no model of the class {name!r}")
    if attention not in ATTENTION:
        raise Unusable(f"its attention is {attention!r}, and none of {', '.join(ATTENTION)}")
    return cls


def _skeleton(manifest: Document) -> transformers.PreTrainedModel:
    """The modules, without memory for any tensor."""
    cls = model_class(manifest["class"], manifest["attention"])
    with torch.device("meta"):
        model = from_config(cls, cls.config_class.from_dict(manifest["config"]))
        if attention_of(model.config) != manifest["attention"]:
            # Not at once: parts may know the default alone.
            config = cls.config_class.from_dict(manifest["config"])
            model = from_config(cls, config, attn_implementation=manifest["attention"])
        for path, attention_type in manifest["attention_types"].items():
            try:
                getattr(model.get_submodule(path), SWITCH)(attention_type)
            except (AttributeError, ValueError) as error:
                raise Unusable(f"{path} cannot switch to attention of the type {attention_type!r}") from error
    if manifest["generation"] is not None:
        model.generation_config = transformers.GenerationConfig.from_dict(manifest["generation"])
    return model.eval()


def build(manifest: Document, region: torch.Tensor) -> transformers.PreTrainedModel:
    """The model over a region that has its weights; none is copied that these kernels can read. Raises
    Unusable where they do not fit together."""
    model = _skeleton(manifest)
    missing = set(names(model))
    panel = int(manifest["kernels"]["panel"])
    for entry in manifest["tensors"]:
        try:
            tensor = _tensor_over(region, entry, panel)
        except (ValueError, RuntimeError, KeyError) as error:
            raise Unusable(f"{entry['names'][0]} does not fit ({error})") from None
        for name in entry["names"]:
            _set(model, name, tensor)
            missing.discard(name)
    if missing:
        raise Unusable(f"there are no weights for {', '.join(sorted(missing)[:5])}")
    try:
        engine.apply_plan(model, engine.ModelPlan.from_dict(manifest["plan"]))
    except (TypeError, ValueError, KeyError) as error:  # no plan, or one of another model
        raise Unusable(f"its layers cannot be fused again ({error})") from None
    return model


def annotate(model: nn.Module, manifest: Document, outcome: Outcome) -> None:
    """What report() says about a loaded model."""
    outcomes = (*(Outcome(**line) for line in manifest["outcomes"]), outcome)
    asked = named(manifest["precision"]), manifest["unpad"], manifest["kv_cache"]
    record = Record(manifest["backend"], outcomes, *asked)
    mark(model, record)


def mark_made_again(model: nn.Module, reason: str) -> None:
    record = record_of(model)
    assert record is not None
    line = Outcome("saved weights", False, reason)
    mark(model, replace(record, outcomes=(*record.outcomes, line)))


def _tensor_over(region: torch.Tensor, entry: Document, panel: int) -> torch.Tensor:
    """Raises ValueError or RuntimeError for one that would reach beyond what there is."""
    if entry["offset"] < 0:
        raise ValueError("it begins before the file")
    shape, dtype = tuple(entry["shape"]), getattr(torch, entry["dtype"])
    if entry["packed"]:
        kind = engine.Kind.of(entry["packed"])
        cls = engine.FORMS[entry["form"]]
        layout = replace(cls.layout_of(kind, shape), panel=panel)
        memory = view(region, entry["offset"], torch.uint8, (layout.nbytes,), (1,))
        return cls.attach(memory, kind, shape, dtype, panel, entry["requires_grad"])
    tensor = view(region, entry["offset"], dtype, shape, entry["stride"])
    return nn.Parameter(tensor, entry["requires_grad"]) if entry["parameter"] else tensor


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise Unusable(f"the model has no {path}") from None
    table: dict[str, Any] = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers
    if leaf not in table:
        raise Unusable(f"the model has no {name}")
    if table[leaf].shape != tensor.shape:
        raise Unusable(f"{name} does not fit: {tuple(tensor.shape)} instead of {tuple(table[leaf].shape)}")
    table[leaf] = tensor
