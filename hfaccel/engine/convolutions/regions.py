"""Which parts of a model can run channels last, and which norms and activations each convolution in them can
take over.

Names and the order of modules play no role. A copy of the part, with random numbers in its batch norms, is
called with a random image; hooks record which tensor goes from which convolution into which norm and
activation. Then the same copy runs as a region. The part becomes a region if the results are equal. The
largest parts are tried first.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hfaccel.engine.calls.fallback import stock_calls_of
from hfaccel.engine.calls.kinds import kind_of
from hfaccel.engine.calls.trials import difference
from hfaccel.engine.convolutions.convolution import KINDS, convolution_problem, prepare
from hfaccel.engine.convolutions.prepared import VECTORS, is_activation, is_norm
from hfaccel.engine.convolutions.region import Region
from hfaccel.engine.kernels import Kind
from hfaccel.engine.replacements import Arguments
from hfaccel.replacement import replace
from hfaccel.upstream import Need, problem
from hfaccel.upstream.of_torch import _ConvNd, tree_leaves

# Sizes of random inputs: the sides of an image and of a feature map; samples and frames of a sound.
IMAGE, MAP, SOUND, FRAMES = 64, 16, 2000, 48

NO_FORWARD = (nn.ModuleList, nn.ModuleDict)

Followers = dict[str, tuple[str, ...]]  # path of a convolution -> paths of the modules whose work it does


@dataclass(frozen=True)
class Found:
    """A module that can be a region, and the followers of each of its convolutions."""

    module: nn.Module
    followers: Followers


Trials = dict[Hashable, "Followers | str"]  # kind of a part -> the result of its trial


def find_regions(model: nn.Module, fused: set[nn.Module], reasons: dict[nn.Module, str]) -> Iterator[Found]:
    """The largest parts that pass a trial.

    `fused`: modules that other replacements compute. `reasons` receives the reason for each part that fails.
    """
    trials: Trials = {}

    def below(module: nn.Module) -> Iterator[Found]:
        if isinstance(module, Region) or module in fused or not _is_worth_it(module):
            return
        if not isinstance(module, NO_FORWARD) and not _is_in_one_child(module):
            key = kind_of(module, indexed=True)
            if key not in trials:
                trials[key] = problem(Need.CONVOLUTIONS) or trial(module)
            verdict = trials[key]
            if not isinstance(verdict, str):
                yield Found(module, verdict)
                return
            reasons[module] = verdict
        for child in module.children():
            yield from below(child)

    yield from below(model)


def convolutions(module: nn.Module) -> dict[str, _ConvNd]:
    """The convolutions of a module that can be prepared, by path."""
    return {
        path: each
        for path, each in module.named_modules()
        if isinstance(each, nn.Conv1d | nn.Conv2d) and not convolution_problem(each)
    }


def _is_worth_it(module: nn.Module) -> bool:
    """Whether a region is worth it: converting an image costs more than one convolution without a norm
    gains."""
    count = len(convolutions(module))
    return count > 1 or (count == 1 and any(map(is_norm, module.modules())))


def _is_in_one_child(module: nn.Module) -> bool:
    """Whether one child has all convolutions: the child is the smaller region, with a shorter trial."""
    count = len(convolutions(module))
    children = (child for child in module.children() if not isinstance(child, (*NO_FORWARD, *KINDS)))
    return any(len(convolutions(child)) == count for child in children)


def enter(module: nn.Module, followers: Followers, wanted: Callable[[torch.Tensor], Kind]) -> None:
    """Make `module` a region. `wanted`: the kind in which to compute with a weight, where possible."""
    for path, convolution in convolutions(module).items():
        chosen = tuple(module.get_submodule(each) for each in followers.get(path, ()))
        prepare(convolution, wanted(convolution.weight), chosen)
    replace(module, Region)


# The trial


def trial(module: nn.Module) -> Followers | str:
    """The followers of each convolution of this part, or why the part cannot be a region."""
    try:
        stock = _copy(module)
    except Exception as error:  # noqa: BLE001 (whatever a foreign module raises when copied is the reason)
        return f"it cannot be copied for a trial ({type(error).__name__})"
    problem = "it has no convolution"
    for image in _images(stock):
        with torch.no_grad():
            verdict = _try(stock, image)
        if not isinstance(verdict, str):
            return verdict
        problem = verdict
    return problem


def _try(stock: nn.Module, image: torch.Tensor) -> Followers | str:
    flow, given = Flow(stock), image.clone()
    try:
        with flow:
            expected = stock(given)
    except Exception as error:  # noqa: BLE001 (whatever a foreign forward raises is the reason)
        return f"its forward cannot be called with an image alone ({type(error).__name__})"
    if not torch.equal(given, image):
        return "it changes the image that it is given"
    problem = ""
    for followers in flow.choices():
        problem = _difference(expected, stock, followers, image)
        if not problem:
            return followers
    return problem


def _difference(expected: object, stock: nn.Module, followers: Followers, image: torch.Tensor) -> str:
    """How the part as a region differs from the part itself; "" if the results are equal."""
    fast = _copy(stock, random=False)
    enter(fast, followers, lambda weight: Kind.FLOAT32)
    try:
        got = fast(image.clone())
    except Exception as error:  # noqa: BLE001 (a layout that a foreign forward does not take)
        return f"it fails channels last ({type(error).__name__})"
    if isinstance(fast, Region) and stock_calls_of(fast):
        return next(iter(stock_calls_of(fast)))
    wanted, given = (
        [leaf for leaf in tree_leaves(each) if isinstance(leaf, torch.Tensor)] for each in (expected, got)
    )
    if not wanted or [each.shape for each in wanted] != [each.shape for each in given]:
        return f"its forward returns a {type(expected).__name__}"
    return next(filter(None, map(difference, wanted, given)), "")


class Flow:
    """Records which tensors go from which convolution into which norm and activation of a module."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = {id(each): path for path, each in module.named_modules() if is_norm(each)}
        self.activations = {id(each): path for path, each in module.named_modules() if is_activation(each)}
        self.convolutions = {id(each): path for path, each in convolutions(module).items()}
        self.paths = self.norms | self.activations | self.convolutions
        self.modules = [each for each in module.modules() if id(each) in self.paths]
        self.kept: list[object] = []  # tensors, so that no two have one id
        # (id, version) of a tensor -> paths that it went through, of one chain
        self.makers: dict[tuple[int, int], list[str]] = {}
        self.given: dict[int, tuple[int, int]] = {}  # id of a running module -> state of its input
        self.chains: dict[str, set[tuple[str, ...]]] = {}

    def __enter__(self) -> Flow:
        self.handles = [each.register_forward_pre_hook(self.before) for each in self.modules]
        self.handles += [each.register_forward_hook(self.after) for each in self.modules]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()
        for chain in self.makers.values():  # if another module reads a tensor of a chain too, the trial fails
            self.chains.setdefault(chain[0], set()).add(tuple(chain[1:]))

    def before(self, module: nn.Module, args: Arguments) -> None:
        self.given[id(module)] = _state(args[0]) if args else (0, 0)

    def after(self, module: nn.Module, args: Arguments, result: object) -> None:
        path, given = self.paths[id(module)], self.given.pop(id(module))
        self.kept += [args, result]
        if id(module) in self.convolutions:
            self.makers[_state(result)] = [path]
            return
        chain = self.makers.get(given)
        if chain is not None and self._continues(chain, module):
            del self.makers[given]
            self.makers[_state(result)] = [*chain, path]

    def _continues(self, chain: list[str], module: nn.Module) -> bool:
        if id(module) in self.norms:
            return len(chain) == 1
        return not any(path in self.activations.values() for path in chain[1:])

    def choices(self) -> Iterator[Followers]:
        """Choices of followers, from all to none. A convolution with changing followers has none."""
        same = {path: next(iter(chains)) for path, chains in self.chains.items() if len(chains) == 1}
        norms = set(self.norms.values())
        levels: tuple[Followers, ...] = (
            {path: chain for path, chain in same.items() if chain},
            {path: chain[:1] for path, chain in same.items() if chain and chain[0] in norms},
            {},
        )
        yield from (level for level, _ in itertools.groupby(levels))


def _state(tensor: object) -> tuple[int, int]:
    """What identifies a tensor and its values: a change in place gives another state."""
    counted = isinstance(tensor, torch.Tensor) and not tensor.is_inference()
    return id(tensor), tensor._version if counted else 0  # type: ignore[attr-defined]


def _copy(module: nn.Module, random: bool = True) -> nn.Module:
    """A copy in float32 around the same parameters; its batch norms get random numbers of their own."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        half = parameter.is_floating_point() and parameter.dtype is not torch.float32
        memo[id(parameter)] = nn.Parameter(parameter.float(), requires_grad=False) if half else parameter
    copied = copy.deepcopy(module, memo)
    generator = torch.Generator().manual_seed(0)  # optimizing must not advance the program's random numbers
    for each in copied.modules() if random else ():
        for name, buffer in each.named_buffers(recurse=False):
            if buffer.is_floating_point():
                each._buffers[name] = buffer.float()
        if is_norm(each):
            _randomize(each, generator)
    return copied


def _randomize(norm: nn.Module, generator: torch.Generator) -> None:
    """Give a norm random numbers: a new norm changes almost nothing, so its absence would not show."""
    for name in VECTORS:
        tensor = getattr(norm, name, None)
        if tensor is None:
            continue
        numbers = torch.rand(tensor.shape, generator=generator) + 0.5
        if name in ("bias", "running_mean"):
            numbers -= 1.0
        setattr(norm, name, nn.Parameter(numbers, False) if name in norm._parameters else numbers)


def _images(module: nn.Module) -> Iterator[torch.Tensor]:
    """Random inputs of shapes that the module's first convolution takes."""
    first = next(iter(convolutions(module).values()), None)
    if first is None:
        return
    generator = torch.Generator().manual_seed(0)
    channels = first.in_channels
    if isinstance(first, nn.Conv2d):
        shapes: tuple[tuple[int, ...], ...] = ((2, channels, *[IMAGE if channels <= 4 else MAP] * 2),)
    elif channels == 1:
        shapes = ((2, SOUND), (2, 1, SOUND))
    else:
        shapes = ((2, channels, FRAMES), (2, FRAMES, channels))
    for shape in shapes:
        yield torch.randn(shape, generator=generator)
