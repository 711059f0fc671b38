"""The C extensions, or the reason why they are missing.

The package installs without a compiler. Then `arena` is None, and `MISSING` says what that costs.
hfaccel.engine.kernels decides which kernels are loaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple, NewType, Protocol


class Region(Protocol):
    """Anonymous memory, aligned to and advised for huge pages; freed with the last tensor in it.

    A region has the buffer protocol, so torch.frombuffer makes tensors from it. Its length is in bytes."""

    @property
    def pages(self) -> str: ...
    @property
    def refused(self) -> tuple[tuple[str, int], ...]: ...
    def __len__(self) -> int: ...


class Arena(Protocol):
    """What hfaccel._arena offers. Sizes and addresses are bytes; failures raise OSError."""

    def Region(self, size: int, pages: str = "thp", node: int = -1, locked: bool = False) -> Region: ...
    def make_huge(self, address: int, size: int, collapse: bool) -> int: ...
    def reserve_heap(self, size: int) -> int: ...
    def trim_heap(self) -> bool: ...
    def smaps(self, address: int, size: int) -> tuple[int, int, int]: ...
    def malloc_owner(self) -> str: ...
    def mallopt(self, option: int, value: int) -> bool: ...
    def set_memory_policy(self, mode: str, nodes: tuple[int, ...]) -> None: ...
    def memory_policy(self) -> tuple[str, tuple[int, ...]]: ...
    def end_with_parent(self, signal: int) -> None: ...
    def count_event(self, type: int, config: int) -> int: ...
    def saved_state(self) -> int: ...
    def requestable_state(self) -> int: ...


Objects = tuple[object, ...]
Names = tuple[str, ...]


class Comparison(Protocol):
    """What hfaccel._snapshot offers. The arguments of a call are tuples of one length."""

    def items_are(self, tables: tuple[dict[str, object], ...], names: Names, values: Objects) -> bool: ...
    def attributes_are(self, owners: Objects, names: Names, values: Objects) -> bool: ...
    def types_are(self, objects: Objects, types: tuple[type, ...]) -> bool: ...
    def sizes_are(self, tables: tuple[dict[Any, Any], ...], sizes: tuple[int, ...]) -> bool: ...


# Objects of the classes of hfaccel._kernels_SET.
NativeMatrix = NewType("NativeMatrix", object)
NativeNorm = NewType("NativeNorm", object)
NativeSequences = NewType("NativeSequences", object)
NativeBias = NewType("NativeBias", object)
NativeRotary = NewType("NativeRotary", object)
NativeRelative = NewType("NativeRelative", object)
NativePast = NewType("NativePast", object)
NativeEmbedding = NewType("NativeEmbedding", object)
NativeExperts = NewType("NativeExperts", object)
Span = tuple[int, int]  # an address, and how many rows or numbers lie there


class Attention(NamedTuple):
    """Of a layer; native/kernels/layer.h says what each is."""

    query: NativeMatrix
    key: NativeMatrix | None
    value: NativeMatrix | None
    output: NativeMatrix
    head_size: int
    kind: int
    scale: float
    softcap: float = 0.0
    groups: int = 1
    values_first: bool = False
    copies: int = 1
    pairs: bool = False
    unrotated: bool = False
    wide_norms: bool = False
    norms_rotated: bool = False
    sinks: int = 0


class FeedForward(NamedTuple):
    gate: NativeMatrix | None
    up: NativeMatrix | None
    down: NativeMatrix | None
    activation: int


class Norms(NamedTuple):
    attention: NativeNorm | None
    output: NativeNorm | None
    query: NativeNorm | None = None
    key: NativeNorm | None = None
    attention_end: NativeNorm | None = None
    output_end: NativeNorm | None = None


class Residual(NamedTuple):
    norm_first: bool
    parallel: bool = False
    added: float = 1.0


class Crossing(NamedTuple):
    """Attention over an encoder's keys and values."""

    query: NativeMatrix | None
    output: NativeMatrix | None
    norm: NativeNorm | None


class Router(NamedTuple):
    """Which experts of a mixture a token goes through; native/kernels/router.h says what each is."""

    weight: int
    bf16: bool
    bias: int
    correction: int
    sigmoid: bool
    chosen: int
    groups: int
    chosen_groups: int
    counted: int
    normalised: bool
    least: float
    scale: float


class Mixture(NamedTuple):
    experts: NativeExperts
    router: Router
    shared_gate: int = 0


class Kernels(Protocol):
    """What hfaccel._kernels_SET offers, for each instruction set.

    Tensors are passed as addresses, 0 for none. The classes check what they are made of; their objects keep
    nothing alive. Arguments are positional."""

    PANEL: int  # columns of a packed weight that lie together
    DOT_BF16: int  # whether the set has an instruction that multiplies bfloat16; otherwise
    DOT_I8: int  # weights are widened as they are read. The same for int8

    def Matrix(
        self, kind: int, columns: int, inputs: int, panels: int, bias: int, of_int8: tuple[int, ...] = ..., /
    ) -> NativeMatrix: ...  # of_int8: scales, sums, factors, exact, exact_inputs
    def Norm(self, weight: int, bias: int, epsilon: float, kind: int, /) -> NativeNorm: ...
    def Layer(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        norms: Norms,
        residual: Residual,
        crossing: Crossing = ...,
        mixture: Mixture = ...,
        /,
    ) -> object: ...
    def Sequences(
        self,
        rows: int,
        count: int,
        first: int,
        length: int,
        skipped: int,
        seen: int,
        window: int,
        padding_sees_all: int,
        /,
    ) -> NativeSequences: ...
    def Bias(self, numbers: int, head: int, query: int, batch: int = ..., /) -> NativeBias: ...
    def Rotary(self, cosines: int, sines: int, angles: int, size: int, /) -> NativeRotary: ...
    def Past(
        self,
        columns: int,
        length: int,
        batch: int,
        head: int,
        token: int,
        number: int,  # what the cache holds: enum number in native/kernels/vector.h
        seen: int,  # address of two int32 for each sequence
        places: int = ...,  # address of two int32 for each row
        /,
    ) -> NativePast: ...
    def Relative(
        self, keys: int, queries: int, buckets: int, index: int, reach: int, /
    ) -> NativeRelative: ...
    def Embedding(self, columns: int, norm: NativeNorm, tables: tuple[Span, ...], /) -> NativeEmbedding: ...
    def run_layers(
        self,
        layers: tuple[object, ...],
        threads: int,
        input: int,
        output: int,
        sequences: NativeSequences,
        bias: NativeBias | None,
        rotary: NativeRotary | tuple[NativeRotary | None, ...] | None,  # a tuple: of each layer
        relative: NativeRelative | None,
        past: NativePast | None = ...,
        caches: tuple[int, ...] = ...,  # addresses of each layer's keys and values
        encoded: NativePast | None = ...,  # of an encoder's tokens
        of_encoder: tuple[int, ...] = ...,  # addresses of each layer's keys and values of those
        tail: tuple[NativeNorm, NativeMatrix, int, bool] = ...,  # address of its output, and whether bfloat16
        /,
    ) -> None: ...
    def linear(
        self,
        threads: int,
        matrix: NativeMatrix,
        activation: int,
        input: int,
        output: int,
        rows: int,
        bf16: bool = ...,  # of input and output
        /,
    ) -> None: ...
    def embed(
        self, threads: int, embedding: NativeEmbedding, ids: tuple[Span, ...], output: int, rows: int, /
    ) -> bool: ...
    def Experts(
        self,
        count: int,
        first: tuple[NativeMatrix | None, NativeMatrix, NativeMatrix],  # gate, up, down of the first expert
        steps: tuple[int, int],  # bytes from expert to expert: of gate and up, of down
        activation: int,
        limit: tuple[float, float, float],  # limit, slope, shift
        biases: tuple[tuple[int, bool], tuple[int, bool]],  # of gate and up, of down: address, bfloat16
        alternate: bool,
        /,
    ) -> NativeExperts: ...
    def experts(
        self,
        threads: int,
        experts: NativeExperts,
        tokens: tuple[int, int, int, bool],  # input, output, rows, bfloat16
        chosen: tuple[int, int, int, bool],  # which (int64), their weights, how many for a row, bfloat16
        /,
    ) -> bool: ...
    def count(self, numbers: int, size: int, value: int) -> int: ...
    def use_threads(self, function: int) -> None: ...
    def use_cache(self, size: int) -> None: ...


INSTALL = "install a C compiler and python3-dev, then reinstall hfaccel"


def _load(name: str, cost: str) -> tuple[Any, str]:
    try:
        return import_module(name), ""
    except ModuleNotFoundError as error:
        return None, f"the native part is missing ({error}): {cost}; {INSTALL}"
    except ImportError as error:  # raised by the extension itself, with the reason
        return None, f"{name}: {error}"


arena: Arena | None
arena, MISSING = _load("hfaccel._arena", "weights stay on 4 KiB pages and glibc keeps its defaults")
comparison: Comparison | None = _load("hfaccel._snapshot", "calls of fused models take longer")[0]


def load_kernels(modules: Iterable[str]) -> tuple[Kernels | None, str, str]:
    """The first of these extensions that this CPU and this installation have, its name, and why those before
    it cannot be used."""
    problems: list[str] = []
    for name in modules:
        kernels, problem = _load(name, "layers are computed by torch")
        if kernels is not None:
            return kernels, name, "; ".join(problems)
        problems.append(problem)
    return None, "", "; ".join(problems)
