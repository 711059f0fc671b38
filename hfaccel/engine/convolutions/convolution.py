"""Convolutions that compute from prepared weights (`engine.convolutions.prepared`), together with the norm
and the activation after them.

A convolution is fast if images are stored channels last, which oneDNN's blocks and matrix rows both need, and
if the batch norm and the activation after the convolution cost no pass over memory. Both need a region
(`engine.convolutions.region`): modules that a trial has shown to work channels last. Outside of regions a
prepared convolution returns the layout that torch returns, and is used only if it is faster by itself.
"""

from __future__ import annotations

import torch
from torch import nn

from hfaccel import upstream
from hfaccel.engine.calls.code import trusted
from hfaccel.engine.calls.fallback import COUNTED, fall_back
from hfaccel.engine.calls.guards import COMPUTED, has_hooks, stock_reason
from hfaccel.engine.convolutions.prepared import Prepared, kind_of, sides
from hfaccel.engine.convolutions.region import Follower, current
from hfaccel.engine.kernels import Kind, kernels_problem
from hfaccel.engine.replacements import Find, ModuleReplacement, Paths, Settings, register
from hfaccel.engine.weights.linear import MIN_WIDTH
from hfaccel.replacement import replace
from hfaccel.upstream.of_torch import _ConvNd

KINDS = (nn.Conv1d, nn.Conv2d)


@register
class PreparedConvolution(ModuleReplacement, _ConvNd):
    """An nn.Conv1d or nn.Conv2d that computes from a prepared weight.

    `_hfaccel_followers`: modules whose work the convolution does within a region. `_hfaccel_wanted`: the Kind
    asked for.
    """

    hfaccel_name = "convolution"
    hfaccel_prefix = "Prepared"
    hfaccel_own = (COUNTED, "_hfaccel_prepared")  # the latter is made again when needed

    @classmethod
    def hfaccel_apply(cls, module: nn.Module, settings: Settings, find: Find) -> None:
        if not isinstance(module, KINDS):
            raise ValueError(f"only a convolution can be prepared, but got a {type(module).__name__}")
        if problem := convolution_problem(module):
            raise ValueError(f"the convolution cannot be prepared: {problem}")
        followers = tuple(map(find, settings["followers"]))
        prepare(module, Kind.of(settings["kind"]), followers)

    def hfaccel_settings(self, paths: Paths) -> Settings:
        return {"kind": self.wanted.label, "followers": [paths[each] for each in self.followers]}

    def hfaccel_problem(self, paths: Paths) -> str:
        return (
            "" if all(each in paths for each in self.followers) else "a part whose work it does was removed"
        )

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or self._is_unusual(input):
            return super().forward(input)  # type: ignore[no-any-return]
        run = current()
        if run is None and not self._pays(input):
            return super().forward(input)  # type: ignore[no-any-return]
        followers = self._usable_followers() if run is not None else ()
        code = trusted((self, *followers))
        if not code.holds():
            fall_back(self, code.problem())
            return super().forward(input)  # type: ignore[no-any-return]
        prepared = self._prepared(followers)
        if not prepared.fits(input):
            return super().forward(input)  # type: ignore[no-any-return]
        result = prepared(input)
        if run is None:
            return result if _is_channels_last(input) else result.contiguous()
        run.hand(result, followers)
        return result

    def _is_unusual(self, input: torch.Tensor) -> bool:
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        return (
            self.training
            or torch.is_grad_enabled()
            or type(weight) is not nn.Parameter
            or bool(stock_reason(input))
            or input.dtype is not weight.dtype
            or (bias is not None and bias.dtype is not weight.dtype)
            or not weight.is_cpu
            or input.dim() != weight.dim()
            or input.shape[1] != weight.shape[1] * self.groups
        )

    def _pays(self, input: torch.Tensor) -> bool:
        """Whether a call outside of a region is worth preparing. In float32, torch reorders the weight at
        each call, and the prepared convolution reorders the images."""
        weight = self._parameters["weight"]
        assert weight is not None
        return bool(kind_of(self, self.wanted)[0] is not Kind.FLOAT32 or weight.numel() >= input.numel())

    def _usable_followers(self) -> tuple[nn.Module, ...]:
        """The followers whose work the convolution may do in this call: those before the first one that has
        a hook or is a norm in training mode; none if the convolution itself has a hook."""
        followers = self.followers
        if followers and (has_hooks(self) or has_hooks(followers[0]) or followers[0].training):
            return ()
        return followers[:1] if len(followers) > 1 and has_hooks(followers[1]) else followers

    def _prepared(self, followers: tuple[nn.Module, ...]) -> Prepared:
        kept: dict[int, Prepared] = self.__dict__.setdefault("_hfaccel_prepared", {})
        prepared = kept.get(len(followers))
        if prepared is None or prepared.is_stale():
            with torch.inference_mode(False), torch.no_grad():
                prepared = kept[len(followers)] = Prepared(self, followers, self.wanted)
        return prepared

    @property
    def followers(self) -> tuple[nn.Module, ...]:
        modules: tuple[nn.Module, ...] = self.__dict__.get("_hfaccel_followers", ())
        return modules

    @property
    def wanted(self) -> Kind:
        return Kind(self.__dict__.get("_hfaccel_wanted", Kind.FLOAT32))


def _is_channels_last(input: torch.Tensor) -> bool:
    """Whether the strides are channels last, by the rule of torch's convolutions, which also counts
    dimensions of size 1, where strides say nothing about the order in memory."""
    if input.dim() != 4:
        return False
    sizes, strides = input.shape, input.stride()
    least = 0
    for dimension in (1, 3, 2, 0):
        if strides[dimension] < least or (dimension == 0 and least == strides[1]):
            return False
        least = strides[dimension] * max(sizes[dimension], 1)
    return True


def convolution_problem(module: _ConvNd) -> str:
    """Why this convolution cannot be prepared; "" if it can."""
    if isinstance(module, PreparedConvolution):
        return ""
    weight = module._parameters.get("weight")
    if type(module) not in KINDS:
        return f"is a {type(module).__name__}, not a plain nn.Conv1d or nn.Conv2d"
    if type(weight) is not nn.Parameter:
        return "its weight is not an ordinary parameter"
    dtype = str(weight.dtype).removeprefix("torch.")
    problems = {
        f"its weight is on {weight.device.type}": not weight.is_cpu,
        f"its weight is {dtype}; float32 and bfloat16 are packed": weight.dtype not in COMPUTED,
        "its weight was made in inference mode, where changes are not counted": weight.is_inference(),
        f"it pads with {module.padding_mode}": module.padding_mode != "zeros",
        "it pads its sides differently": sides(module) is None,
        "it pads by more than its window sees": _sees_only_padding(module),
        kernels_problem(): bool(kernels_problem()),
        upstream.problem(upstream.Need.CONVOLUTIONS): bool(upstream.problem(upstream.Need.CONVOLUTIONS)),
    }
    return next((problem for problem, applies in problems.items() if applies), "")


def _sees_only_padding(module: _ConvNd) -> bool:
    """Whether a window may lie outside of the image: oneDNN's kernels then read memory beyond the image
    (torch 2.13)."""
    geometry = sides(module)
    if geometry is None:
        return False
    window = (1, *module.kernel_size)[-2:]
    reach = ((size - 1) * dilation + 1 for size, dilation in zip(window, geometry[2], strict=True))
    return any(padding >= size for padding, size in zip(geometry[0], reach, strict=True))


def alone_problem(module: _ConvNd) -> str:
    """Why preparing this convolution outside of a region is not worth it; "" if it may be."""
    outputs, *rest = module.weight.shape
    if module.groups != 1:
        return "grouped, and not in a part of the model that runs channels last"
    if min(outputs, torch.Size(rest).numel()) < MIN_WIDTH:
        return f"narrower than {MIN_WIDTH}, and not in a part of the model that runs channels last"
    return ""


def prepare(module: _ConvNd, wanted: Kind, followers: tuple[nn.Module, ...] = ()) -> None:
    """Let the convolution compute from a prepared weight from now on. `followers`: the modules whose work it
    does too."""
    for each in followers:
        if not isinstance(each, Follower):
            replace(each, Follower)
    if not isinstance(module, PreparedConvolution):
        replace(module, PreparedConvolution)
    module.__dict__["_hfaccel_wanted"] = int(wanted)
    module.__dict__["_hfaccel_followers"] = followers
    trusted((module, *followers))
