"""Convolutions: prepared weights, regions that run channels last, norms and activations done besides."""

from __future__ import annotations

import copy
import io
import pickle
from functools import cache

import pytest
import torch
from conftest import at_once
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from networks import Residual, detector, images, randomized
from torch import nn

import hfaccel
from hfaccel import engine
from hfaccel.engine.convolutions.convolution import PreparedConvolution, prepare
from hfaccel.engine.convolutions.region import Follower, Region
from hfaccel.engine.kernels import Kind, kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The models are small. configure(), which sets the threads, runs once for a process."""
    hfaccel.configure()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def optimized():
    return hfaccel.optimize(detector())


def fast_detector():
    """Equal to detector(), optimized; a copy, because trials take their time."""
    return copy.deepcopy(optimized())


PRECISIONS = {Kind.FLOAT32: {}, Kind.BFLOAT16: {"dtype": torch.bfloat16}, Kind.INT8: {"quantization": "int8"}}
# Largest distance from stock, relative to the length of the result.
TOLERANCE = {Kind.FLOAT32: 1e-5, Kind.BFLOAT16: 0.02, Kind.INT8: 0.03}


def run(model, *given):
    with torch.inference_mode():
        return model(*(each.clone() for each in given))


def strides(tensor):
    """Of a dimension with one number the stride says nothing."""
    return [stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1]


def distance(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def applied(model, subject):
    lines = (line for line in hfaccel.report(model).outcomes if line.subject == subject and line.applied)
    return sum(line.count for line in lines)


def check(model, given, kind=Kind.FLOAT32):
    """The optimized model, which gives stock's results, in stock's layout."""
    expected = run(model, given)
    fast = hfaccel.optimize(model, **PRECISIONS[kind])
    got = run(fast, given)
    assert strides(got) == strides(expected) and got.dtype is expected.dtype
    assert distance(got, expected) < TOLERANCE[kind]
    assert not hfaccel.report(fast).stock_calls
    return fast


# Whole networks


@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_detector_gives_stock_results(kind):
    model, given = detector(), images()
    fast = check(model, given, kind)
    assert applied(fast, "convolution") == 21
    assert applied(fast, "batch norm") == applied(fast, "activation") == 19
    other = images(1, 96, seed=1)  # another size and batch than in the trial
    assert distance(run(fast, other), run(model, other)) < TOLERANCE[kind]


def test_the_given_model_is_not_changed_and_restore_is_exact():
    model, given = detector(), images()
    before, types = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    expected = run(model, given)
    fast = hfaccel.optimize(model)
    run(fast, given)
    assert [type(module) for module in model.modules()] == types
    assert torch.equal(run(model, given), expected)
    assert all(
        isinstance(mine, type(other)) for mine, other in zip(fast.modules(), model.modules(), strict=True)
    )
    hfaccel.restore(fast)
    assert [type(module) for module in fast.modules()] == types
    assert torch.equal(run(fast, given), expected)
    assert all(torch.equal(value, before[name]) for name, value in fast.state_dict().items())
    assert not any(name.startswith("_hfaccel") for module in fast.modules() for name in vars(module))


def test_inplace_changes_the_model_itself_and_back():
    model, given = detector(), images()
    expected = run(model, given)
    assert hfaccel.optimize(model, inplace=True) is model
    assert isinstance(model, Region) and distance(run(model, given), expected) < 1e-5
    assert torch.equal(run(hfaccel.restore(model), given), expected)


class Pairs(nn.Module):
    """One convolution with what may come after it."""

    def __init__(self, convolution, *after):
        super().__init__()
        self.convolution, self.after = convolution, nn.ModuleList(after)

    def forward(self, x):
        x = self.convolution(x)
        for module in self.after:
            x = module(x)
        return x


class FrozenBatchNorm2d(nn.Module):
    """As transformers' detectors have it: buffers, and an epsilon of its own."""

    def __init__(self, size):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(size, generator=generator) + 0.2)

    def forward(self, x):
        weight, bias, mean, variance = (
            each.reshape(1, -1, 1, 1)
            for each in (self.weight, self.bias, self.running_mean, self.running_var)
        )
        scale = weight * (variance + 1e-5).rsqrt()
        return x * scale + (bias - mean * scale)


BLOCKS = {
    "shared ReLU": (Residual, 4, 2),
    "Sequential": (
        lambda: nn.Sequential(
            nn.Conv2d(64, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1)
        ),
        1,
        1,
    ),
    "frozen": (lambda: Pairs(nn.Conv2d(64, 32, 3, bias=False), FrozenBatchNorm2d(32), nn.ReLU()), 1, 1),
    "without affine": (lambda: Pairs(nn.Conv2d(64, 8, 3), nn.BatchNorm2d(8, affine=False), nn.GELU()), 1, 1),
    "depthwise": (lambda: Pairs(nn.Conv2d(64, 64, 3, groups=64), nn.BatchNorm2d(64), nn.ReLU6()), 1, 1),
    "hardswish": (lambda: Pairs(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.Hardswish()), 1, 1),
    "leaky": (lambda: Pairs(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.LeakyReLU(0.3)), 1, 1),
    "approximate GELU": (lambda: Pairs(nn.Conv2d(64, 64, 1), nn.BatchNorm2d(64), nn.GELU("tanh")), 1, 0),
    "1-D": (lambda: Pairs(nn.Conv1d(64, 64, 3, 2), nn.BatchNorm1d(64), nn.SiLU()), 1, 1),
}


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(name, kind):
    make, norms, activations = BLOCKS[name]
    torch.manual_seed(0)
    model = randomized(make())
    shape = (2, 64, 40) if name == "1-D" else (2, 64, 14, 18)
    fast = check(model, torch.randn(shape, generator=torch.Generator().manual_seed(1)), kind)
    assert (applied(fast, "batch norm"), applied(fast, "activation")) == (norms, activations)


# What must not be folded


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()

    def forward(self, x):
        y = self.conv(x)
        return self.act(self.norm(y)) + y


class NormFirst(UsedTwice):
    def forward(self, x):
        return self.act(self.conv(self.norm(x)))


class Between(UsedTwice):
    def forward(self, x):
        return self.act(self.norm(self.conv(x) + 1))


class ChangedBetween(UsedTwice):
    def forward(self, x):
        y = self.norm(self.conv(x))
        y += x
        return self.act(y)


class CalledTwice(UsedTwice):
    def forward(self, x):
        return self.act(self.conv(self.norm(self.conv(x))))


@pytest.mark.parametrize(
    ("cls", "norms", "activations"),
    [(UsedTwice, 0, 0), (NormFirst, 0, 1), (Between, 0, 0), (ChangedBetween, 1, 0), (CalledTwice, 0, 0)],
)
def test_only_what_the_data_flow_allows_is_folded(cls, norms, activations):
    torch.manual_seed(0)
    fast = check(randomized(cls()), images(channels=8, size=20))
    assert (applied(fast, "batch norm"), applied(fast, "activation")) == (norms, activations)


class Flattens(nn.Module):
    """Minds the layout: always, or only for images that no trial has."""

    def __init__(self, least):
        super().__init__()
        self.conv, self.norm, self.least = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), least

    def forward(self, x):
        y = self.norm(self.conv(x))
        return y.view(y.shape[0], -1) if x.shape[-1] > self.least else y.flatten(1)


def test_a_module_that_minds_the_layout_is_no_region():
    fast = check(randomized(Flattens(0)), images())
    reasons = [line.reason for line in hfaccel.report(fast).outcomes if line.subject == "batch norm"]
    assert len(reasons) == 1 and reasons[0].startswith("not folded: the call failed channels last (view size")


def test_one_that_minds_it_later_runs_as_stock_from_then_on():
    model = randomized(Flattens(70))
    fast = check(model, images())
    for _ in range(2):
        assert torch.equal(run(fast, images(size=80)), run(model, images(size=80)))
    ((reason, count),) = hfaccel.report(fast).stock_calls.items()
    assert reason.startswith("the call failed channels last") and count == 2


def test_stock_errors_stay():
    model = randomized(Flattens(0))
    for each in (model, hfaccel.optimize(model)):
        with pytest.raises(RuntimeError, match="expected input"):
            run(each, images(channels=5))


# Changes after optimize()


CHANGES = {
    "weight in place": lambda model: model.stem.conv.weight.mul_(2),
    "below the version": lambda model: model.stem.conv.weight.data.mul_(2),
    "one number": lambda model: model.stem.conv.weight[3, 1, 2, 2].add_(3),
    "replaced weight": lambda model: setattr(
        model.stem.conv, "weight", nn.Parameter(model.stem.conv.weight * 2)
    ),
    "statistics": lambda model: model.stem.bn.running_mean.add_(1),
    "norm's bias": lambda model: model.stem.bn.bias.add_(1),
    "epsilon": lambda model: setattr(model.stem.bn, "eps", 0.5),
    "state dict": lambda model: model.load_state_dict(detector_of_seed(1).state_dict()),
    "assigned": lambda model: model.load_state_dict(detector_of_seed(1).state_dict(), assign=True),
    "replaced norm": lambda model: setattr(model.stem, "bn", nn.Identity()),
    "replaced activation": lambda model: setattr(model.stem, "act", nn.Tanh()),
    "other forward": lambda model: setattr(model.stem.bn, "forward", lambda x: x * 2),
    "hook on a norm": lambda model: model.stem.bn.register_forward_hook(
        lambda module, args, result: result + 1
    ),
    "hook before an activation": lambda model: model.stem.act.register_forward_pre_hook(
        lambda m, args: args[0] * 2
    ),
    "hook on a convolution": lambda model: model.stem.conv.register_forward_hook(lambda m, args, y: y * 2),
}


def detector_of_seed(seed):
    torch.manual_seed(seed)
    return randomized(detector(), seed)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen(name):
    model, fast, given = detector(), fast_detector(), images()
    unchanged = run(fast, given)
    for each in (model, fast):
        with torch.no_grad():
            CHANGES[name](each)
    expected = run(model, given)
    assert distance(unchanged, expected) > 1e-4
    for _ in range(2):
        assert distance(run(fast, given), expected) < 1e-5


def test_a_hook_sees_what_stock_would_show_it():
    seen = {}
    given = images()
    for name, each in (("stock", detector()), ("fast", fast_detector())):
        for path in ("stem.conv", "down.bn", "c3.cv1.act", "neck"):
            module = each.get_submodule(path)
            handle = lambda m, args, y, key=(name, path): seen.__setitem__(key, y.clone())  # noqa: E731
            module.register_forward_hook(handle)
        run(each, given)
    for path in ("stem.conv", "down.bn", "c3.cv1.act", "neck"):
        torch.testing.assert_close(seen["fast", path], seen["stock", path], rtol=1e-4, atol=1e-5)


def test_a_part_that_is_called_by_itself_is_stock():
    model, fast, given = detector(), fast_detector(), images()
    for path in ("stem", "stem.conv"):
        got = run(fast.get_submodule(path), given)
        assert torch.equal(got, run(model.get_submodule(path), given))
    first = hfaccel.optimize(randomized(BLOCKS["Sequential"][0]()))
    part = first[:2]
    assert (
        distance(run(part, images(channels=64)), run(hfaccel.restore(first)[:2], images(channels=64))) < 1e-6
    )


# The stock path


def test_gradients_training_autocast_and_tracing_are_stock():
    model, fast, given = detector(), fast_detector(), images()
    expected = run(model, given)
    assert torch.equal(fast(given), model(given))  # gradients are on
    fast(given).sum().backward()
    assert fast.stem.conv.weight.grad is not None
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fast(given), model(given))
    with torch.no_grad():
        traced = torch.jit.trace(fast, given, check_trace=False)
        assert distance(traced(given), expected) < 1e-6
        compiled = torch.compile(fast, backend="eager", fullgraph=True)
        assert torch.equal(compiled(given), expected)
    fast.train(), model.train()
    with torch.no_grad():
        assert torch.equal(fast(given), model(given))
    reasons = set(hfaccel.report(fast).stock_calls)
    assert {"the model is in training mode", "under autocast"} <= reasons


def test_one_norm_in_training_mode_takes_its_statistics():
    model, fast, given = detector(), fast_detector(), images()
    for each in (model, fast):
        each.c3.cv1.bn.train()
    assert distance(run(fast, given), run(model, given)) < 1e-5
    assert torch.allclose(fast.c3.cv1.bn.running_mean, model.c3.cv1.bn.running_mean, rtol=1e-4, atol=1e-5)


# Copies


def through_torch_save(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "through", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), through_torch_save]
)
def test_copies_are_models_of_their_own(through):
    given = images()
    fast = fast_detector()
    expected = run(fast, given)
    copied = through(fast)
    assert isinstance(copied, Region) and torch.equal(run(copied, given), expected)
    with torch.no_grad():
        fast.stem.bn.bias.add_(1)
    assert torch.equal(run(copied, given), expected)
    assert not hfaccel.report(copied).stock_calls
    hfaccel.restore(copied)
    assert not any(isinstance(m, PreparedConvolution | Region | Follower) for m in copied.modules())


def test_state_dicts_are_ordinary():
    model, fast = detector(), fast_detector()
    run(fast, images())
    mine, stock = fast.state_dict(), model.state_dict()
    assert list(mine) == list(stock) and all(torch.equal(mine[name], stock[name]) for name in stock)
    fresh = detector()
    fresh.load_state_dict(mine)
    assert torch.equal(run(fresh, images()), run(model, images()))


def test_a_plan_says_how_to_do_it_again():
    fast, given = fast_detector(), images()
    again = detector()
    engine.apply_plan(again, engine.plan_of(fast))
    assert engine.plan_of(again) == engine.plan_of(fast)
    assert torch.equal(run(again, given), run(fast, given))
    step = engine.Step("stem.bn", "convolution", {"kind": "float32", "followers": []})
    with pytest.raises(ValueError, match=r"stem\.bn: only a convolution can be .*, but got a BatchNorm2d"):
        engine.apply_plan(detector(), engine.ModelPlan((step,)))


def test_threads_do_not_meet():
    fast = fast_detector()
    inputs = [images(seed=seed) for seed in range(4)]
    expected = [run(fast, each) for each in inputs]

    def work(number):
        return all(torch.equal(run(fast, inputs[number]), expected[number]) for _ in range(5))

    assert all(at_once(4, work))


# Single convolutions


@st.composite
def convolutions(draw):
    flat = draw(st.booleans())
    count = 1 if flat else 2
    small = st.integers(1, 4)
    groups = draw(st.sampled_from([1, 1, 2, 8]))
    inputs, outputs = (8 * draw(st.integers(1, 10)) for _ in range(2))
    kernel, stride, dilation = (tuple(draw(small) for _ in range(count)) for _ in range(3))
    padding = draw(st.one_of(st.just("valid"), st.tuples(*[st.integers(0, 3)] * count)))
    if draw(st.integers(0, 4)) == 0:
        padding, stride = "same", (1,) * count
    cls = nn.Conv1d if flat else nn.Conv2d
    sizes = [draw(st.integers(1, 20)) for _ in range(count)]
    module = cls(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())).eval()
    return module, (draw(st.integers(1, 3)), inputs, *sizes), draw(st.booleans())


@settings(max_examples=150)
@given(convolutions(), st.sampled_from(list(PRECISIONS)))
def test_every_geometry(case, kind):
    from hfaccel.engine.convolutions.convolution import convolution_problem

    module, shape, turned = case
    given = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if turned and given.dim() == 4:
        given = given.to(memory_format=torch.channels_last)
    assume(not convolution_problem(module))
    try:
        expected = run(module, given)
    except RuntimeError:  # the kernel is larger than the image
        expected = None
    prepare(module, kind)
    if expected is None:
        with pytest.raises(RuntimeError):
            run(module, given)
        return
    got = run(module, given)
    assert got.shape == expected.shape and strides(got) == strides(expected)
    assert (got - expected).norm() <= TOLERANCE[kind] * max(expected.norm(), 1e-3)


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("turned", [True, False])
def test_the_strides_of_an_image_of_one_pixel_say_how_the_result_lies(kind, turned):
    module, given = nn.Conv2d(8, 8, (2, 1), padding=(1, 0)).eval(), torch.ones(1, 8, 1, 1)
    if turned:
        given = given.to(memory_format=torch.channels_last)
    expected = run(module, given)
    prepare(module, kind)
    assert strides(run(module, given)) == strides(expected)


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("size", [64, 71])
def test_patches_are_a_matrix_product(kind, size):
    """As ViT embeds an image. Numbers beyond the last whole patch do not count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 96, 16, 16), nn.Flatten(2)).eval()
    fast = check(model, images(size=size), kind)
    lines = [line.reason for line in hfaccel.report(fast).outcomes if line.subject == "convolution"]
    assert lines[0].startswith(f"packed in {kind.label} as a matrix")


def test_a_half_precision_checkpoint_keeps_its_type():
    model = detector().to(torch.bfloat16)
    given = images().to(torch.bfloat16)
    fast = hfaccel.optimize(model)
    got, expected = run(fast, given), run(model, given)
    assert got.dtype is torch.bfloat16 and distance(got.float(), expected.float()) < 0.02


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), "it pads with reflect"),
        (lambda: nn.Conv2d(64, 64, 4, padding="same"), "it pads its sides differently"),
        (lambda: nn.Conv2d(64, 64, 1, padding=1), "it pads by more than its window sees"),
        (lambda: nn.Conv2d(64, 64, 3, groups=4), "grouped, and not in a part"),
        (lambda: nn.Conv2d(8, 8, 3), "narrower than 64"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(64, 64, 3)), "not a plain nn.Conv1d"),
    ],
)
def test_what_is_left_alone_says_why(make, reason):
    model = nn.Sequential(make(), nn.Flatten(), nn.LazyLinear(64))
    model(torch.randn(1, model[0].in_channels, *[8] * (model[0].weight.dim() - 2)))
    fast = hfaccel.optimize(model.eval())
    line = next(line for line in hfaccel.report(fast).outcomes if line.subject == "convolution")
    assert not line.applied and reason in line.reason


# Transformers


def test_an_optimized_backbone_is_still_transformers_model(tmp_path):
    import inspect

    from transformers import ResNetConfig, ResNetForImageClassification, ResNetModel

    torch.manual_seed(0)
    sizes = dict(embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 2, 1])
    model = randomized(ResNetForImageClassification(ResNetConfig(**sizes)))
    fast = hfaccel.optimize(model)
    backbone, given = fast.resnet, images()
    assert isinstance(backbone, Region) and isinstance(backbone, ResNetModel)
    assert type(backbone).__name__ == "ResNetModel"
    assert inspect.signature(backbone.forward) == inspect.signature(model.resnet.forward)
    with torch.inference_mode():
        expected = model(given, output_hidden_states=True)
        got = fast(given, output_hidden_states=True)
    assert type(got) is type(expected) and len(got.hidden_states) == len(expected.hidden_states)
    for mine, stock in zip(got.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, stock, rtol=1e-4, atol=1e-4)
    fast.save_pretrained(tmp_path)
    loaded = ResNetForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(run(loaded, given).logits, run(model, given).logits)


@pytest.mark.filterwarnings("ignore:what is saved cannot be made again")
def test_a_saved_backbone_is_the_same(tmp_path):
    from transformers import ResNetConfig, ResNetModel

    torch.manual_seed(0)
    sizes = dict(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])
    fast = hfaccel.optimize(randomized(ResNetModel(ResNetConfig(**sizes))))
    hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    assert engine.plan_of(loaded).steps == engine.plan_of(fast).steps and isinstance(loaded, Region)
    assert torch.equal(run(loaded, images())[0], run(fast, images())[0])
