"""A session in the place of a model's forward.

`Running` is an attribute `forward` of the model itself: its class, modules and parameters stay what they
are, and whatever the session cannot do runs as before, with the reason counted.
"""

from __future__ import annotations

import copy
import ctypes
import inspect
import os
from collections import Counter

import torch
from torch import nn

from hfaccel.engine.calls.guards import is_traced
from hfaccel.export.engine import Engine, Job, Session
from hfaccel.export.fingerprint import fingerprint
from hfaccel.export.interface import DEFAULTS, stock_forward
from hfaccel.export.watch import Watch, limits

Tensors = dict[str, torch.Tensor]

# Arguments without effect in a model that runs once per input, and the values for which that holds.
HARMLESS: dict[str, tuple[bool, ...]] = {
    "return_dict": (True, False),
    "use_cache": (True, False),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
}


class Running:
    """Callable as the model's forward. See `attach`."""

    def __init__(self, model: nn.Module, engine: Engine, job: Job) -> None:
        self.model, self.engine, self.job = model, engine, job
        self.interface = job.interface
        self.names = tuple(inspect.signature(stock_forward(model)).parameters)
        self.session: Session | None = None
        self.process = 0
        self.broken = ""  # why no call can use the session
        self.calls: Counter[str] = Counter()
        self.watch: Watch | None = None

    @property
    def __wrapped__(self) -> object:
        """transformers reads the signature of a model's forward."""
        return stock_forward(self.model)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: object, **kwargs: object) -> object:
        reason = self._state_problem()
        inputs: Tensors = {}
        if not reason:
            inputs, reason = self._inputs(args, kwargs)
        if not reason:
            try:
                outputs = self._ready().run(inputs)
            except Exception as error:  # noqa: BLE001 (whatever a foreign engine raises is the reason)
                reason = f"the engine failed ({type(error).__name__}: {str(error)[:200]})"
            else:
                result = self.interface.output_type(**dict(zip(self.interface.outputs, outputs, strict=True)))
                return result.to_tuple() if kwargs.get("return_dict") is False else result
        self.calls[reason] += 1
        return stock_forward(self.model)(*args, **kwargs)

    def prepare(self) -> None:
        """Open the session now. Raises whatever the engine raises."""
        self.session, self.process = self.engine.open(self.model, self.job), os.getpid()
        self.watch = Watch(self.model)

    def _ready(self) -> Session:
        if self.session is None or self.process != os.getpid():  # after a pickle or a fork
            keep_forever(self.session)
            self.prepare()
        assert self.session is not None
        return self.session

    def _state_problem(self) -> str:
        """Why the model as it is now cannot be run by the session."""
        if self.model.training:
            return "the model is in training mode"
        if torch.is_grad_enabled():
            return "gradients are enabled; torch.inference_mode is faster"
        if torch.is_autocast_enabled("cpu"):
            return "autocast is enabled"
        if is_traced():
            return "traced or transformed"
        config = self.model.config
        for name in ("output_attentions", "output_hidden_states"):
            if getattr(config, name, False):
                return f"config.{name} is set"
        return self.broken or self._change()

    def _change(self) -> str:
        """What is no longer as it was exported. All but hooks and training mode is for good."""
        # After a copy or a pickle nothing is known: somebody may have written to it before its first call.
        changed = Watch.VALUES if self.watch is None else self.watch.problem()
        if changed == Watch.VALUES and fingerprint(self.model) == self.job.weights:
            self.watch = Watch(self.model)  # new, or written with equal values
            return ""
        if changed and changed not in (Watch.HOOK, Watch.TRAINING):
            self.broken = changed
        return changed

    def _inputs(self, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[Tensors, str]:
        """The session's inputs, complete and in order, and why a call cannot be run by it."""
        if len(args) > len(self.names):
            return {}, "too many positional arguments"
        given = {**dict(zip(self.names, args, strict=False)), **kwargs}
        inputs: Tensors = {}
        for name, value in given.items():
            if value is None or (name in HARMLESS and value in HARMLESS[name]):
                continue
            if name not in self.interface.inputs or not isinstance(value, torch.Tensor):
                return {}, f"{name} was passed"
            inputs[name] = value
        main = next(iter(self.interface.inputs))
        if main not in inputs:
            return {}, f"{main} is missing"
        return self._complete(inputs, inputs[main])

    def _complete(self, given: Tensors, main: torch.Tensor) -> tuple[Tensors, str]:
        inputs: Tensors = {}
        for name, dtype in self.interface.inputs.items():
            tensor = given.get(name)
            if tensor is None:
                if name not in DEFAULTS or name not in self.interface.dynamic or main.is_floating_point():
                    return {}, f"{name} is missing"
                tensor = torch.full_like(main, DEFAULTS[name])
            if reason := self._tensor_problem(name, tensor, dtype, main):
                return {}, reason
            inputs[name] = tensor.to(dtype).contiguous()
        return inputs, self._range_problem(inputs)

    def _tensor_problem(self, name: str, tensor: torch.Tensor, dtype: torch.dtype, main: torch.Tensor) -> str:
        if tensor.device.type != "cpu" or tensor.layout != torch.strided:
            return f"{name} is not an ordinary tensor on the CPU"
        if tensor.is_floating_point() != dtype.is_floating_point or tensor.is_complex():
            return f"{name} is {tensor.dtype}, and {dtype} was exported"
        if dtype.is_floating_point and tensor.dtype != dtype:
            return f"{name} is {tensor.dtype}, and {dtype} was exported"
        fixed = {number: size for (of, number), size in self.interface.fixed.items() if of == name}
        rank = len(fixed) + len(self.interface.dynamic[name])
        if tensor.dim() != rank or tensor.numel() == 0:
            return f"{name} has the shape {tuple(tensor.shape)}"
        if any(tensor.shape[number] != size for number, size in fixed.items()):
            return f"{name} has the shape {tuple(tensor.shape)}, and other sizes were exported"
        if any(tensor.shape[number] != main.shape[number] for number in self.interface.dynamic[name]):
            return f"{name} and the main input differ in shape"
        return ""

    def _range_problem(self, inputs: Tensors) -> str:
        """Engines read beyond a table's end without a word; the model's own forward raises."""
        if "input_ids" not in inputs:
            return ""
        sizes = limits(self.model)
        if inputs["input_ids"].shape[1] > sizes["positions"]:
            return f"more than {sizes['positions']} tokens"
        for name in sizes.keys() & inputs.keys():
            least, most = inputs[name].aminmax()
            if least < 0 or most >= sizes[name]:
                return f"{name} outside 0 to {sizes[name] - 1}"
        return ""

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "session": None, "process": 0, "watch": None, "calls": Counter()}

    def __deepcopy__(self, memo: dict[int, object]) -> Running:
        other = memo[id(self)] = Running.__new__(Running)
        other.__dict__.update(self.__getstate__())
        other.model = copy.deepcopy(self.model, memo)
        other.session, other.process = self.session, self.process  # it never changes
        return other


def keep_forever(session: Session | None) -> None:
    """Whose threads a forked process does not have, it must not end either: OpenVINO would abort."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))


def running(model: nn.Module) -> Running | None:
    forward = model.__dict__.get("forward")
    return forward if isinstance(forward, Running) else None
