"""What may be done to a model between two calls, each time to an optimized model and its stock twin."""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import nn
from twins import Inputs, Twins, infer, outcome

import hfaccel
from hfaccel.errors import ModelError
from hfaccel.reporting import record_of
from hfaccel.upstream.of_transformers import COLLECTING

PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": torch.bfloat16},
    "int8": {"quantization": "int8"},
}
Model = Any
USUAL = Inputs()


# What hfaccel does; stock does nothing


@dataclass(frozen=True)
class Optimize:
    """`again`: what was optimized before is restored first. `given`: go on with the model that was given."""

    precision: str = "float32"
    inplace: bool = False
    again: bool = False
    given: bool = False

    def __call__(self, twins: Twins) -> None:
        before = hfaccel.restore(twins.fast) if self.again else twins.fast
        was, coarse = record_of(before), twins.precision
        try:
            fast = hfaccel.optimize(before, inplace=self.inplace, **PRECISIONS[self.precision])
        except ModelError:
            assert was is not None and was.backend  # in another precision
            return
        if not (was and was.backend):
            twins.rounded(self.precision)
        if fast is before:
            return
        twins.kept.append(before if not self.given else fast)
        if self.given:
            twins.precision, fast = coarse, before
        if fast is not before and self.precision != "float32":
            twins.replace(fast, twins.stock)
        twins.fast = fast


@dataclass(frozen=True)
class Restore:
    def __call__(self, twins: Twins) -> None:
        assert hfaccel.restore(twins.fast) is twins.fast


@dataclass(frozen=True)
class SaveAndLoad:
    def __call__(self, twins: Twins) -> None:
        if any(name.startswith(("hook", "train")) for name in twins.undo):
            return  # as with save_pretrained, neither is part of what is saved
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                hfaccel.save(twins.fast, folder)
            except ModelError:  # not optimized, not packed now, or changed in its parts
                return
            _forget_collecting(twins.stock)
            twins.replace(hfaccel.load(folder), twins.stock)


def _forget_collecting(model: nn.Module) -> None:
    """The hooks that transformers leaves once hidden states were asked for: they are not saved, and with them
    nothing can be pickled."""
    for module in model.modules():
        module.__dict__.pop("_output_capturing_hooks_installed", None)
        for number, hook in list(module._forward_hooks.items()):
            if hook.__module__ == COLLECTING:
                del module._forward_hooks[number]


@dataclass(frozen=True)
class Share:
    def __call__(self, twins: Twins) -> None:
        hfaccel.memory.share(twins.fast)


# Calls


@dataclass(frozen=True)
class Call:
    inputs: Inputs = USUAL
    way: str = "inference"
    settings: tuple[tuple[str, bool], ...] = ()

    def __call__(self, twins: Twins) -> None:
        call = functools.partial(WAYS[self.way], settings=dict(self.settings))
        twins.check(self.inputs, call, "bfloat16" if self.way == "autocast" else "float32")


def plain(model: Model, given: Any, settings: Any) -> Any:
    return infer(model, given, **settings)


def with_gradients(model: Model, given: Any, settings: Any) -> Any:
    return model(**given, **settings)


def without_gradients(model: Model, given: Any, settings: Any) -> Any:
    with torch.no_grad():
        return model(**given, **settings)


def under_autocast(model: Model, given: Any, settings: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return infer(model, given, **settings)


def in_a_thread(model: Model, given: Any, settings: Any) -> Any:
    results: list[Any] = []

    def work() -> None:
        torch.set_num_threads(1)
        results.append(outcome(lambda model: infer(model, given, **settings), model))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if isinstance(results[0], Exception):
        raise results[0]
    return results[0]


def in_training_mode(model: Model, given: Any, settings: Any) -> Any:
    modes = {name: module.training for name, module in model.named_modules()}
    model.train()
    try:
        return infer(model, given, **settings)
    finally:
        model.eval()
        for name, module in model.named_modules():
            module.training = modes[name]


WAYS = {
    "inference": plain,
    "gradients": with_gradients,
    "no_grad": without_gradients,
    "autocast": under_autocast,
    "thread": in_a_thread,
    "training": in_training_mode,
}


# Changes of parts, and back: done once the first time, undone the second


class Toggle:
    def __call__(self, twins: Twins) -> None:
        key = self.key(twins)
        if undo := twins.undo.pop(key, None):
            twins.apply(undo)
        elif key:
            twins.undo[key] = self.change(twins)

    def key(self, twins: Twins) -> str:
        """What is changed; "" where there is no such thing in the model."""
        raise NotImplementedError

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        """Change both; how that is undone."""
        raise NotImplementedError


def pick(found: Iterator[str], number: int) -> str:
    names = [*found]
    return names[number % len(names)] if names else ""


def turned(function: Any) -> Any:
    """The function, with the first tensor of its result turned round in the last dimension."""

    @functools.wraps(function)
    def mine(*args: Any, **kwargs: Any) -> Any:
        return turn(function(*args, **kwargs))

    return mine


def turn(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return result.flip(-1)
    if isinstance(result, tuple):
        return (turn(result[0]), *result[1:])
    if hasattr(result, "to_tuple"):
        result[next(iter(result))] = turn(result.to_tuple()[0])
    return result


@dataclass(frozen=True)
class Patch(Toggle):
    """The forward of a class, in the whole process."""

    number: int = 0

    def key(self, twins: Twins) -> str:
        return "patch " + pick(iter({type(each).__name__: 0 for each in twins.stock.modules()}), self.number)

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        name = self.key(twins).removeprefix("patch ")
        cls = next(type(each) for each in twins.stock.modules() if type(each).__name__ == name)
        patch = mock.patch.object(cls, "forward", turned(cls.forward))
        twins.patches.enter_context(patch)
        stops = iter((patch.stop, lambda: None))  # once for both
        return lambda model: next(stops)()


def seen(module: nn.Module, args: Any, result: Any) -> None:
    """A hook that only looks."""


def larger(module: nn.Module, args: Any, result: Any) -> Any:
    return turn(result)


def larger_input(module: nn.Module, args: Any) -> Any:
    if args and isinstance(args[0], torch.Tensor) and args[0].is_floating_point():
        return (args[0] * 1.5, *args[1:])
    return None


@dataclass(frozen=True)
class Hook(Toggle):
    number: int = 0
    kind: str = "larger"

    def key(self, twins: Twins) -> str:
        return f"hook {self.kind} {self.number % len([*twins.stock.modules()])}"

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        name = pick((name for name, _ in twins.stock.named_modules()), self.number)
        ids = []

        def add(model: Model) -> None:
            module = model.get_submodule(name)
            if self.kind == "input":
                ids.append(module.register_forward_pre_hook(larger_input).id)
            else:
                ids.append(module.register_forward_hook(seen if self.kind == "seen" else larger).id)

        def remove(model: Model) -> None:  # a copy has hooks of the same numbers
            module = model.get_submodule(name)
            for number in ids:
                module._forward_hooks.pop(number, None)
                module._forward_pre_hooks.pop(number, None)

        twins.apply(add)
        return remove


@dataclass(frozen=True)
class Attribute(Toggle):
    """A number that a part keeps."""

    number: int = 0

    def key(self, twins: Twins) -> str:
        found = pick(
            (
                f"{path}:{name}"
                for path, part in twins.stock.named_modules()
                for name, value in vars(part).items()
                if type(value) is float
            ),
            self.number,
        )
        return f"attribute {found}" if found else ""

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        path, name = self.key(twins).removeprefix("attribute ").split(":")
        before = getattr(twins.stock.get_submodule(path), name)
        twins.apply(lambda model: setattr(model.get_submodule(path), name, before * 1.5 + 0.05))
        return lambda model: setattr(model.get_submodule(path), name, before)


@dataclass(frozen=True)
class Activation(Toggle):
    """A module without weights inside another: exchanged for Tanh."""

    number: int = 0

    def key(self, twins: Twins) -> str:
        found = pick(
            (
                path
                for path, part in twins.stock.named_modules()
                if type(part).__module__ == "transformers.activations" or isinstance(part, nn.Tanh)
            ),
            self.number,
        )
        return f"activation {found}" if found else ""

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        path = self.key(twins).removeprefix("activation ")
        before = copy.deepcopy(twins.stock.get_submodule(path))
        twins.apply(lambda model: model.set_submodule(path, nn.Sigmoid()))
        return lambda model: model.set_submodule(path, copy.deepcopy(before))


@dataclass(frozen=True)
class Dropout(Toggle):
    """One dropout in training mode, as for Monte Carlo dropout."""

    number: int = 0

    def key(self, twins: Twins) -> str:
        parts = twins.stock.named_modules()
        found = pick((path for path, part in parts if isinstance(part, nn.Dropout)), self.number)
        return f"train {found}" if found else ""

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        path = self.key(twins).removeprefix("train ")
        twins.apply(lambda model: model.get_submodule(path).train())
        return lambda model: model.get_submodule(path).eval()


@dataclass(frozen=True)
class EagerAttention(Toggle):
    def key(self, twins: Twins) -> str:
        return "eager attention"

    def change(self, twins: Twins) -> Callable[[Model], Any]:
        before = twins.stock.config._attn_implementation
        twins.apply(lambda model: model.set_attn_implementation("eager"))
        return lambda model: model.set_attn_implementation(before)


# Changes of weights


@dataclass(frozen=True)
class ResizeEmbeddings:
    size: int = 520

    def __call__(self, twins: Twins) -> None:
        twins.apply(lambda model: model.resize_token_embeddings(self.size, mean_resizing=False) and None)


@dataclass(frozen=True)
class To:
    dtype: torch.dtype = torch.bfloat16

    def __call__(self, twins: Twins) -> None:
        twins.apply(lambda model: model.to(self.dtype) and None)


@dataclass(frozen=True)
class ThroughHalf:
    def __call__(self, twins: Twins) -> None:
        twins.apply(lambda model: model.half().float() and None)


@dataclass(frozen=True)
class ShareMemory:
    def __call__(self, twins: Twins) -> None:
        twins.apply(lambda model: model.share_memory() and None)


@dataclass(frozen=True)
class Copy:
    """`way`: deepcopy or pickle."""

    way: str = "deepcopy"

    def __call__(self, twins: Twins) -> None:
        way = copy.deepcopy if self.way == "deepcopy" else lambda model: pickle.loads(pickle.dumps(model))
        copies: list[Model] = []
        if not twins.apply(lambda model: copies.append(way(model))):
            twins.kept.append(twins.fast)
            twins.replace(*copies)


@dataclass(frozen=True)
class LoadStateDict:
    """`of`: the state dict of the model itself, or of the stock twin. `factor`: its numbers times that."""

    of: str = "own"
    assign: bool = False
    factor: float = 1.0

    def __call__(self, twins: Twins) -> None:
        stock = {name: value.clone() for name, value in twins.stock.state_dict().items()}

        def load(model: Model) -> None:
            found = model.state_dict() if self.of == "own" else {k: v.clone() for k, v in stock.items()}
            given = {k: v * self.factor if v.is_floating_point() else v for k, v in found.items()}
            model.load_state_dict(given, assign=self.assign)

        twins.apply(load)


@dataclass(frozen=True)
class EditWeight:
    """`way`: a method in place, an item, or the attribute data."""

    number: int = 0
    way: str = "method"

    def __call__(self, twins: Twins) -> None:
        names = (name for name, each in twins.stock.named_parameters() if each.dim() > 1)
        name = pick(names, self.number)
        twins.apply(lambda model: EDITS[self.way](model, name))


def multiply(model: Model, name: str) -> None:
    with torch.no_grad():
        model.get_parameter(name).mul_(0.8)


def set_item(model: Model, name: str) -> None:
    with torch.no_grad():
        model.get_parameter(name)[1] = 0.02


def set_data(model: Model, name: str) -> None:
    parameter = model.get_parameter(name)
    parameter.data = parameter.data * 0.8


def new_parameter(model: Model, name: str) -> None:
    path, _, last = name.rpartition(".")
    value = model.get_parameter(name).detach() * 0.8
    setattr(model.get_submodule(path), last, nn.Parameter(value))


EDITS = {"method": multiply, "item": set_item, "data": set_data, "parameter": new_parameter}


@dataclass(frozen=True)
class Train:
    """One step of SGD. `mode`: in training mode, with dropout. `new`: with a new optimizer."""

    inputs: Inputs = USUAL
    mode: bool = True
    new: bool = False

    def __call__(self, twins: Twins) -> None:
        if twins.dtype is torch.float16:
            return  # gradients overflow
        if self.new or not twins.optimizers:
            twins.optimizers = [
                torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5) for model in twins.both
            ]
        optimizers = dict(zip(map(id, twins.both), twins.optimizers, strict=True))
        given = self.inputs.of(twins.name)
        twins.apply(lambda model: step(model, optimizers[id(model)], given, self.mode))
        for name in [name for name in twins.undo if name.startswith("train ")]:
            del twins.undo[name]


def step(model: Model, optimizer: Any, given: Any, mode: bool) -> None:
    model.train(mode)
    result = model(**given)[0]
    mask = given.get("attention_mask")
    if mask is not None and mask.shape == result.shape[:2]:
        result = result[mask.bool()]
    optimizer.zero_grad()
    result.float().square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    model.eval()
