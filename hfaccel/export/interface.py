"""What goes into a model and what comes out of it, as an exporter must know it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hfaccel import upstream

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

Sample = Mapping[str, torch.Tensor]

# The inputs that are exported, by the model's main input, and which of their dimensions vary.
DYNAMIC: dict[str, dict[str, tuple[int, ...]]] = {
    "input_ids": {"input_ids": (0, 1), "attention_mask": (0, 1), "token_type_ids": (0, 1)},
    "pixel_values": {"pixel_values": (0,)},
    "input_values": {"input_values": (0,), "attention_mask": (0,)},
    "input_features": {"input_features": (0,), "attention_mask": (0,)},
}
# What stands for an input that a call leaves out: the value that transformers itself takes.
DEFAULTS = {"attention_mask": 1, "token_type_ids": 0}


@dataclass(frozen=True)
class Interface:
    """Names and types of the exported inputs and outputs.

    `fixed` holds the sizes of the dimensions that do not vary: (input, dimension) -> size.
    """

    inputs: dict[str, torch.dtype]
    dynamic: dict[str, tuple[int, ...]]
    fixed: dict[tuple[str, int], int]
    outputs: tuple[str, ...]
    output_type: type[ModelOutput]

    def to_key(self) -> list[object]:
        return [sorted(self.dynamic.items()), list(self.fixed.items()), self.outputs]


class Flat(nn.Module):
    """The model as a function of tensors in the interface's order that returns a tuple of tensors."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names, self.outputs = model, names, outputs

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = stock_forward(self.model)(**dict(zip(self.names, tensors, strict=True)))
        return tuple(result[name] for name in self.outputs)


def stock_forward(model: nn.Module) -> Any:
    """The forward of the model's class, whatever runs in its place."""
    return type(model).forward.__get__(model)


def export_problem(model: nn.Module) -> str:
    """Why this model cannot be exported; "" where nothing is known against it."""
    if problem := upstream.problem(upstream.Need.EXPORT):
        return problem
    name = getattr(model, "main_input_name", None)
    if not hasattr(model, "config") or name not in DYNAMIC:
        return f"models with one of the inputs {', '.join(DYNAMIC)} are exported"
    if getattr(model.config, "is_encoder_decoder", False) or getattr(model, "can_generate", bool)():
        return "the model generates; only models that run once for each input are exported"
    if {parameter.dtype for parameter in model.parameters()} - {torch.float32}:
        return "its parameters must be float32; load it with dtype=torch.float32"
    if not getattr(model.config, "return_dict", True):
        return "config.return_dict is False"
    return ""


def default_sample(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Three sequences of up to 12 random tokens, the first padded; two random images.

    Raises ValueError where only the user knows what an input looks like.
    """
    generator = torch.Generator().manual_seed(0)
    config = model.config
    if model.main_input_name == "input_ids":
        least = min(5, config.vocab_size - 1)  # the first ones are special: padding shifts positions
        ids = torch.randint(least, config.vocab_size, (3, 12), generator=generator)
        mask = torch.ones_like(ids)
        mask[0, 7:] = 0
        ids[0, 7:] = getattr(config, "pad_token_id", None) or 0
        return {"input_ids": ids, "attention_mask": mask}
    if model.main_input_name == "pixel_values" and hasattr(config, "image_size"):
        size = config.image_size
        height, width = size if isinstance(size, list | tuple) else (size, size)
        shape = (2, getattr(config, "num_channels", 3), height, width)
        return {"pixel_values": torch.randn(shape, generator=generator)}
    raise ValueError(
        f"the shape of {model.main_input_name} must be known, but the configuration does not say it; "
        "pass sample={name: tensor}"
    )


def complete(model: PreTrainedModel, given: Sample) -> dict[str, torch.Tensor]:
    """The inputs to export, in order: those of the table that the model takes, made up where not given.

    Raises ValueError for an input that is not in the table, or where the main input is missing.
    """
    main = model.main_input_name
    table, taken = DYNAMIC[main], inspect.signature(stock_forward(model)).parameters
    unknown = sorted(set(given) - set(table))
    if unknown or main not in given:
        raise ValueError(f"a sample for this model has {main} and may have {sorted(table)}, not {unknown}")
    result = {}
    for name in table:
        if name in given:
            tensor = given[name]
            result[name] = tensor if tensor.is_floating_point() else tensor.to(torch.int64)
        elif name in taken and main == "input_ids":
            result[name] = torch.full_like(result[main], DEFAULTS[name])
    return result


def interface_of(model: PreTrainedModel, inputs: Sample) -> Interface:
    """Runs the model's own forward once. Raises ValueError where it returns something else than tensors."""
    from transformers.utils import ModelOutput

    with torch.inference_mode():
        result = stock_forward(model)(**inputs)
    if not isinstance(result, ModelOutput):
        raise ValueError(f"its forward must return a ModelOutput, but returned a {type(result).__name__}")
    odd = [name for name, value in result.items() if not isinstance(value, torch.Tensor)]
    if odd:
        raise ValueError(f"its outputs must be tensors, but {', '.join(odd)} is not")
    dynamic = {name: DYNAMIC[model.main_input_name][name] for name in inputs}
    return Interface(
        inputs={name: tensor.dtype for name, tensor in inputs.items()},
        dynamic=dynamic,
        fixed={
            (name, number): size
            for name, tensor in inputs.items()
            for number, size in enumerate(tensor.shape)
            if number not in dynamic[name]
        },
        outputs=tuple(result),
        output_type=type(result),
    )
