"""A convolution's weight in the form that is multiplied: channels-last blocks of oneDNN, or a packed matrix.

The convolution also computes the norm and the activation after it. A batch norm in evaluation mode is a
factor and a shift per channel, which go into weight and bias (in float64, rounded once); an activation is
applied to the sums. The modules' own tensors are left alone; `is_stale` notices when one of them was
replaced, moved or changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hfaccel.engine.calls.snapshot import Place, Table
from hfaccel.engine.kernels import ACTIVATIONS, Activation, Kind, multiplies
from hfaccel.engine.weights.linear import MIN_WIDTH, linear
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.host import read_host
from hfaccel.replacement import original
from hfaccel.upstream.of_torch import _ConvNd, convolve, reorder

# A table, a name in it, the tensor, and its mark.
_Source = tuple[Table, str, torch.Tensor | None, Place | None]
# class name -> oneDNN's name, numbers and variant of the activation
POINTWISE: dict[str, tuple[str, tuple[str, ...], str]] = {
    "ReLU": ("relu", (), ""),
    "ReLU6": ("hardtanh", ("min_val", "max_val"), ""),
    "SiLU": ("swish", (), ""),
    "SiLUActivation": ("swish", (), ""),
    "GELU": ("gelu", (), "none"),
    "GELUActivation": ("gelu", (), "none"),
    "Hardswish": ("hardswish", (), ""),
    "LeakyReLU": ("leaky_relu", ("negative_slope",), ""),
    "Tanh": ("tanh", (), ""),
    "Sigmoid": ("sigmoid", (), ""),
}
NO_ACTIVATION: tuple[str, tuple[str, ...], str] = ("none", (), "")
# Overlapping windows repeat their input in the rows of a matrix. Up to this many repetitions the packed
# matrix is at least as fast as blocks of the same kind, or as blocks in float32. (For a 1 x 1 window the best
# blocks depend on the size of the image; oneDNN reorders other blocks at each call, which can take ten times
# as long as the convolution.)
MAX_REPEAT = 1.0
MAX_REPEAT_AGAINST_FLOAT32 = 3.0
WRONG_ON_AMX = "torch's own in bfloat16 are wrong for some sizes on CPUs with AMX (pytorch issue 169688)"
SAMPLES = 64  # elements of a weight compared at each call: some writes do not change torch's version counter
VECTORS = ("weight", "bias", "running_mean", "running_var")
NUMBERS = ("eps", "negative_slope", "min_val", "max_val")


def is_norm(module: nn.Module) -> bool:
    """Whether this may be a batch norm with fixed statistics. A trial confirms that."""
    stock = original(type(module))
    plain = stock in (nn.BatchNorm1d, nn.BatchNorm2d) and module.track_running_stats
    frozen = "FrozenBatchNorm" in type(module).__name__ and not any(module.children())
    return bool(plain) or (
        frozen and all(isinstance(getattr(module, name, None), torch.Tensor) for name in VECTORS)
    )


def is_activation(module: nn.Module) -> bool:
    name = type(module).__name__
    return name in POINTWISE and (name != "GELU" or getattr(module, "approximate", "") == "none")


def sides(module: _ConvNd) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]] | None:
    """Padding, stride and dilation, each (height, width); a Conv1d has height 1. None if the two sides of the
    input are padded differently."""
    padding: tuple[int, ...]
    if isinstance(module.padding, str):
        missing = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        if module.padding == "same" and any(each % 2 for each in missing):
            return None
        padding = tuple(each // 2 if module.padding == "same" else 0 for each in missing)
    else:
        padding = module.padding
    flat = len(padding) == 1
    return tuple(  # type: ignore[return-value]
        (least, values[0]) if flat else tuple(values)
        for least, values in ((0, padding), (1, module.stride), (1, module.dilation))
    )


def kind_of(module: _ConvNd, wanted: Kind) -> tuple[Kind, bool]:
    """The kind in which this convolution multiplies if `wanted` is asked for, and whether it does so as a
    matrix."""
    geometry = sides(module)
    assert geometry is not None
    _, stride, dilation = geometry
    outputs, inputs, *window = module.weight.shape
    size = inputs * torch.Size(window).numel()
    repeat = torch.Size(window).numel() / (stride[0] * stride[1])
    plain = module.groups == 1 and dilation == (1, 1) and min(outputs, size) >= MIN_WIDTH
    in_blocks = kind_of_blocks(wanted)
    if plain and repeat <= (MAX_REPEAT if in_blocks is wanted else MAX_REPEAT_AGAINST_FLOAT32):
        return wanted, True
    return in_blocks, False


def kind_of_blocks(wanted: Kind) -> Kind:
    """The kind in which oneDNN's blocks are multiplied."""
    onednn_can = multiplies(Kind.BFLOAT16) and not read_host().processor.has("amx_bf16")  # torch's bug on AMX
    return wanted if wanted is Kind.BFLOAT16 and onednn_can else Kind.FLOAT32


def folded(module: _ConvNd, norm: nn.Module | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias, in float32, of a convolution that does the work of this one and of the norm after it;
    without a norm the module's own."""
    weight, bias = module.weight.detach(), None if module.bias is None else module.bias.detach()
    if norm is None:
        return weight, bias
    ones = torch.ones(weight.shape[0], dtype=torch.float64)
    gamma, beta, mean, variance = (
        default if value is None else value.detach().double()
        for value, default in zip(
            (getattr(norm, name) for name in VECTORS), (ones, 0 * ones, 0 * ones, ones), strict=True
        )
    )
    factor = gamma / torch.sqrt(variance + getattr(norm, "eps", 1e-5))
    shift = beta + ((0 if bias is None else bias.double()) - mean) * factor
    return (weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))).float(), shift.float()


class Prepared:
    """The weight and bias from which one convolution and its followers are computed."""

    def __init__(self, module: _ConvNd, followers: tuple[nn.Module, ...], wanted: Kind) -> None:
        norm = next((each for each in followers if is_norm(each)), None)
        activation = next((each for each in followers if is_activation(each)), None)
        self.sources = list(_sources(module, norm))
        self.numbers = [
            (each, name, getattr(each, name)) for each in followers for name in NUMBERS if hasattr(each, name)
        ]
        self.sample, self.values = _sample(module.weight)
        self.kind, self.matrix = kind_of(module, wanted)
        if activation is not None and type(activation).__name__ not in ACTIVATIONS:
            self.matrix, self.kind = False, kind_of_blocks(self.kind)
        self.padding, self.stride, self.dilation = sides(module)  # type: ignore[misc]
        self.groups, self.flat = module.groups, module.weight.dim() == 3
        weight, bias = folded(module, norm)
        weight = weight.unsqueeze(2) if self.flat else weight
        self.window = weight.shape[2:]
        self.dtype = torch.bfloat16 if self.kind is Kind.BFLOAT16 else torch.float32
        self.bias = None if bias is None else bias.float()
        if self.matrix:
            self.activation = (
                Activation.NONE if activation is None else ACTIVATIONS[type(activation).__name__]
            )
            self.weight: torch.Tensor = _matrix(weight, self.kind)
        else:
            name, numbers, variant = (
                NO_ACTIVATION if activation is None else POINTWISE[type(activation).__name__]
            )
            self.pointwise = (name, [float(getattr(activation, each)) for each in numbers], variant)
            self.weight = reorder(
                weight.to(self.dtype), self.padding, self.stride, self.dilation, self.groups, None
            )

    def is_stale(self) -> bool:
        return (
            any(
                table.get(name) is not tensor or (tensor is not None and _mark(tensor) != mark)
                for table, name, tensor, mark in self.sources
            )
            or any(getattr(each, name, None) != value for each, name, value in self.numbers)
            or not torch.equal(self.sample, self.values)
        )

    def fits(self, input: torch.Tensor) -> bool:
        """Whether the result has at least one number."""
        sizes = (1, input.shape[2]) if self.flat else input.shape[2:]
        reach = zip(sizes, self.padding, self.window, self.dilation, strict=True)
        return all(size + 2 * padding > (window - 1) * dilation for size, padding, window, dilation in reach)

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, channels, [height,] width) -> the same, channels last in memory, in the input's type."""
        image = input.unsqueeze(2) if self.flat else input
        result = (self._rows(image) if self.matrix else self._blocks(image)).to(input.dtype)
        return result.squeeze(2) if self.flat else result

    def _blocks(self, image: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = convolve(
            image.to(dtype=self.dtype, memory_format=torch.channels_last),
            self.weight,
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            *self.pointwise,
        )
        return result

    def _rows(self, image: torch.Tensor) -> torch.Tensor:
        """Every window as a row: the convolution is the product of these rows and the weight."""
        assert isinstance(self.weight, PackedWeight)
        (above, beside), (down, right) = self.padding, self.stride
        if above or beside:
            image = nn.functional.pad(image, (beside, beside, above, above))
        windows = image.permute(0, 2, 3, 1).unfold(1, self.window[0], down).unfold(2, self.window[1], right)
        batch, height, width = windows.shape[:3]
        rows = windows.permute(0, 1, 2, 4, 5, 3).reshape(batch * height * width, -1)
        result = linear(rows, self.weight, self.bias, self.activation)
        return result.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _matrix(weight: torch.Tensor, kind: Kind) -> PackedWeight:
    """(outputs, height * width * inputs), in the order in which rows hold a window."""
    with torch.no_grad():
        dense = weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
        return PackedWeight.pack(dense, None, kind)


def _sources(module: _ConvNd, norm: nn.Module | None) -> Iterator[_Source]:
    """Every tensor that the prepared form is computed from: its table and name, the tensor, and its mark."""
    for owner, names in ((module, VECTORS[:2]), (norm, VECTORS)):
        for name in names if owner is not None else ():
            assert owner is not None
            table = owner._parameters if name in owner._parameters else owner._buffers
            tensor = table.get(name)
            yield table, name, tensor, None if tensor is None else _mark(tensor)


def _mark(tensor: torch.Tensor) -> Place:
    """A pair that changes when the tensor moves, and when its values change if torch counts its versions."""
    return tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version


def _sample(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A view of some numbers spread over the weight, and a copy of them."""
    by_stride = sorted(range(weight.dim()), key=weight.stride, reverse=True)  # a view of dense memory
    flat = weight.detach().permute(by_stride).reshape(-1)
    view = flat[:: max(1, flat.numel() // SAMPLES)]
    return view, view.clone()
