"""The kernels in use through Python: bad arguments, no memory, and a leak test for each function."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from hfaccel.engine.kernels import Kind, kernels, kernels_problem
from hfaccel.engine.weights.packed import NO_MATRIX, PackedWeight
from hfaccel.memory import Arena

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

_kernels = kernels()

WIDTH, HEADS, WIDE, ROWS = 64, 4, 128, 6
KINDS = list(Kind)
NORM = (0, 0, 1e-5, 0)


def packed(rows, columns, kind=Kind.FLOAT32):
    torch.manual_seed(0)
    return PackedWeight.pack(torch.randn(rows, columns) / 8, Arena(1 << 20, pages="default"), kind)


def weights(kind=Kind.FLOAT32):
    """query, key, value, output, gate, up, down."""
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDE, WIDTH)] * 2 + [(WIDTH, WIDE)]
    return [packed(*shape, kind) for shape in shapes]


KEPT = weights()  # addresses are all that the kernels see
X, OUT = torch.randn(ROWS, WIDTH), torch.empty(ROWS, WIDTH)
FIRST, LENGTH = torch.tensor([0, 4], dtype=torch.int32), torch.tensor([4, 2], dtype=torch.int32)
LAYER = (WIDTH, HEADS, WIDTH // HEADS, *(weight.matrix() for weight in KEPT), NORM, NORM, False, 1, 0, 0.25)
RUN = dict(
    layers=(_kernels.Layer(*LAYER),),
    threads=2,
    input=X.data_ptr(),
    output=OUT.data_ptr(),
    rows=ROWS,
    sequences=2,
    first=FIRST.data_ptr(),
)
RUN |= dict(length=LENGTH.data_ptr(), skipped=0, seen=0, window=-1, bias=0, bias_head=0, bias_query=0)
RUN |= dict(cosines=0, sines=0, angles=0, relative=None, padding_sees_all=False)
RELATIVE = (X.data_ptr(), X.data_ptr(), 1, FIRST.data_ptr(), 4)  # keys, queries, buckets, index, reach
LINEAR = dict(threads=2, matrix=KEPT[0].matrix(), activation=0, input=X.data_ptr(), in_features=WIDTH)
LINEAR |= dict(output=OUT.data_ptr(), rows=ROWS)

IDS = torch.tensor([0, 2, 5, 1, 0, 3])  # rows of X
EMBED = dict(threads=2, lookups=((X.data_ptr(), ROWS, IDS.data_ptr(), ROWS),), norm=NORM, columns=WIDTH)
EMBED |= dict(output=OUT.data_ptr(), rows=ROWS)


def embed(**changes):
    return _kernels.embed(*{**EMBED, **changes}.values())


def layer(**changes):
    names = ["hidden", "heads", "head_size", "query", "key", "value", "output", "gate", "up", "down"]
    names += ["attention_norm", "output_norm", "norm_first", "activation", "attention", "scale"]
    return _kernels.Layer(*{**dict(zip(names, LAYER, strict=True)), **changes}.values())


def run(**changes):
    return _kernels.run_layers(*{**RUN, **changes}.values())


def linear(**changes):
    return _kernels.linear(*{**LINEAR, **changes}.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_and_a_linear_layer_run(kind):
    kept = weights(kind)
    names = ["query", "key", "value", "output", "gate", "up", "down"]
    made = layer(**{name: weight.matrix() for name, weight in zip(names, kept, strict=True)})
    OUT.fill_(float("nan"))
    run(layers=(made,))
    assert OUT.isfinite().all()
    linear(matrix=kept[0].matrix())
    tolerance = {Kind.FLOAT32: 1e-5, Kind.BFLOAT16: 3e-2, Kind.INT8: 1e-1}[kind]
    torch.testing.assert_close(OUT, X @ kept[0].unpack().t(), rtol=0, atol=tolerance)


NARROW_WEIGHTS = [packed(32, 32) for _ in range(7)]
NARROW = _kernels.Layer(32, 2, 16, *(weight.matrix() for weight in NARROW_WEIGHTS), *LAYER[10:])
MATRIX = KEPT[0].matrix()


@pytest.mark.parametrize(
    "matrix",
    [
        None,
        [*MATRIX],
        MATRIX[:-1],
        (*MATRIX, 0),
        ("0", *MATRIX[1:]),
        (0.5, *MATRIX[1:]),
        (-1, *MATRIX[1:]),
        (3, *MATRIX[1:]),
        (0, -1, *MATRIX[2:]),
        (0, WIDTH, -1, *MATRIX[3:]),
        (0, WIDTH, WIDTH + 1, *MATRIX[3:]),
        (0, WIDTH, WIDTH, 0, 0, 0, 0),
        (0, WIDTH, WIDTH, None, 0, 0, 0),
        (2, WIDTH, WIDTH // 4, MATRIX[3], 0, 0, 0),  # int8 without scales
        (0, 1 << 70, WIDTH, *MATRIX[3:]),
    ],
)
def test_what_is_no_matrix_is_refused(matrix):
    for call in (linear, lambda matrix: layer(query=matrix), lambda matrix: layer(down=matrix)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            call(matrix=matrix) if call is linear else call(matrix)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {name: value}
            for name in ("hidden", "heads", "head_size")
            for value in (0, -1, 1 << 62, "1", None, 16.0)
        ),
        *({"activation": value} for value in (-1, 8, 99, "gelu")),
        *({"attention": value} for value in (-1, 2, 3)),
        *({"attention_norm": value} for value in (None, (), (0, 0, 1e-5), (0, 0, 1e-5, 3), (0, 0, "e", 0))),
        {"scale": "1"},
        {"key": NO_MATRIX},
        {"key": KEPT[5].matrix()},
        {"output": KEPT[5].matrix()},
        {"gate": KEPT[0].matrix()},
        {"up": NO_MATRIX},
        {"down": KEPT[0].matrix()},
        {"down": KEPT[4].matrix()},
        {"head_size": 16, "heads": 5},
    ],
)
def test_a_layer_of_parts_that_do_not_fit_is_refused(changes):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        layer(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("rows", "sequences", "bias_head", "bias_query", "angles")),
        *({name: 0} for name in ("input", "output", "first", "length", "rows")),
        *({name: value} for name in [*RUN][:-2] for value in ("1", 0.5, None)),
        *({"relative": value} for value in ("1", 0.5, [*RELATIVE], RELATIVE[:-1], (0, 0, *RELATIVE[2:]))),
        *({"relative": (*RELATIVE[:place], -1, *RELATIVE[place + 1 :])} for place in (2, 4)),
        {"relative": (*RELATIVE[:3], 0, 4)},
        {"skipped": FIRST.data_ptr()},
        {"seen": FIRST.data_ptr()},
        {"cosines": X.data_ptr(), "angles": 1},
        {"cosines": X.data_ptr(), "sines": X.data_ptr()},
        {"threads": 1 << 40},
    ],
)
def test_a_run_with_bad_arguments_is_refused(changes):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        run(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("rows", "in_features", "activation")),
        *({name: 0} for name in ("input", "output", "in_features")),
        *({name: value} for name in LINEAR for value in ("1", 0.5, None)),
        {"in_features": WIDTH + 1},
        {"activation": 8},
    ],
)
def test_a_linear_layer_with_bad_arguments_is_refused(changes):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        linear(**changes)


def test_embeddings_are_looked_up_and_normed():
    assert embed() is True
    torch.testing.assert_close(OUT, torch.nn.functional.layer_norm(X[IDS], (WIDTH,)))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("columns", "rows")),
        *({name: 0} for name in ("columns", "output")),
        *({name: value} for name in EMBED for value in ("1", 0.5, None)),
        {"lookups": ()},
        {"lookups": EMBED["lookups"] * 9},
        {"lookups": (None,)},
        {"lookups": ((1, 2, 3),)},
        *({"lookups": ((*EMBED["lookups"][0][:i], 0, *EMBED["lookups"][0][i + 1 :]),)} for i in range(4)),
        {"norm": (0, 0, 1e-5, 3)},
    ],
)
def test_embeddings_with_bad_arguments_are_refused(changes):
    with pytest.raises((TypeError, ValueError, OverflowError)):
        embed(**changes)


def test_ids_of_no_row_are_told():
    for bad in (-1, ROWS, -(1 << 63)):
        ids = torch.tensor([0, bad])
        OUT.fill_(7)
        assert embed(lookups=((X.data_ptr(), ROWS, ids.data_ptr(), 2),), rows=2) is False
        assert (OUT == 7).all()


def test_numbers_are_counted():
    numbers = torch.tensor([0, 7, -(1 << 63), 7, 1 << 40])
    for value in (0, 7, -(1 << 63), 1 << 40, 8):
        assert _kernels.count(numbers.data_ptr(), 5, value) == int((numbers == value).sum())
    assert _kernels.count(0, 0, 7) == 0
    for arguments in ((0, 1, 7), (numbers.data_ptr(), -1, 7), (numbers.data_ptr(), 5, 1 << 64), ("1", 5, 7)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            _kernels.count(*arguments)


@pytest.mark.parametrize(
    "function", [_kernels.Layer, _kernels.linear, _kernels.run_layers, _kernels.embed, _kernels.count]
)
def test_too_few_and_too_many_arguments(function):
    for arguments in ((), (1,), (0,) * 40):
        with pytest.raises(TypeError):
            function(*arguments)


def test_what_takes_no_arguments_or_one():
    with pytest.raises(TypeError):
        _kernels.use_threads()
    with pytest.raises(TypeError):
        _kernels.use_threads("address")
    with pytest.raises(OverflowError):
        _kernels.use_threads(-1)
    with pytest.raises(TypeError):
        _kernels.use_cache("much")
    with pytest.raises(OverflowError):
        _kernels.use_cache(-1)
    with pytest.raises(TypeError):
        _kernels.Layer(hidden=1)


def test_no_memory_is_a_memory_error():
    """More rows than addresses: nothing is read."""
    wide = packed(64, 512)  # its rows are copied
    with pytest.raises(MemoryError):
        linear(matrix=wide.matrix(), in_features=512, rows=1 << 44)


@pytest.mark.parametrize("threads", [-1, 0, 1, 2, 64])
def test_any_number_of_threads_gives_the_same(threads):
    run(threads=1)
    expected = OUT.clone()
    run(threads=threads)
    torch.testing.assert_close(OUT, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_layers_follow_one_another(count, threads):
    expected = X.clone()
    for _ in range(count):
        run(input=expected.data_ptr())
        expected = OUT.clone()
    run(layers=RUN["layers"] * count, threads=threads)
    torch.testing.assert_close(OUT, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "error", "words"),
    [
        ((), ValueError, "from 1 to 1024 layers can run, but got 0"),
        (RUN["layers"] * 1025, ValueError, "but got 1025"),
        ((None,), TypeError, "must be a tuple of Layer"),
        (list(RUN["layers"]), TypeError, "must be tuple"),
        ((*RUN["layers"], NARROW), ValueError, "the same hidden size"),
    ],
)
def test_what_cannot_follow_one_another_is_refused(layers, error, words):
    with pytest.raises(error, match=words):
        run(layers=layers)


def test_nothing_to_do():
    linear(rows=0, input=0, output=0)
    OUT.fill_(1)
    run(sequences=0)
    assert not OUT.any()
    run(sequences=0, rows=0, input=0, output=0)


# Leaks

LEAK_TESTS = {
    "Layer": layer,
    "run_layers": lambda: run(threads=1),
    "layers that are refused": lambda: refused(run, layers=(1,)),
    "linear": lambda: linear(threads=1),
    "embed": lambda: embed(threads=1),
    "lookups that are refused": lambda: refused(embed, lookups=(EMBED["lookups"][0], (1,))),
    "count": lambda: _kernels.count(IDS.data_ptr(), IDS.numel(), 1 << 40),
    "use_threads": lambda: refused(_kernels.use_threads, -1),  # a real one is in use
    "use_cache": lambda: refused(_kernels.use_cache, -1),
    "a matrix that is refused": lambda: refused(layer, query=(0, 1)),
    "a matrix too large": lambda: refused(linear, in_features=-1),
    "sizes that are refused": lambda: refused(run, rows=-1),
    "no memory": lambda: refused(linear, matrix=WIDE_MATRIX, in_features=512, rows=1 << 44),
}
WIDE_WEIGHT = packed(64, 512)
WIDE_MATRIX = WIDE_WEIGHT.matrix()


def refused(function, *arguments, **changes):
    with pytest.raises((TypeError, ValueError, OverflowError, MemoryError)):
        function(*arguments, **changes)


def test_every_function_has_a_leak_test():
    public = {name for name in vars(_kernels) if callable(getattr(_kernels, name)) and name[0] != "_"}
    assert public <= set(LEAK_TESTS)


@pytest.mark.parametrize("name", LEAK_TESTS)
def test_nothing_leaks(name):
    call = LEAK_TESTS[name]
    for _ in range(50):
        call()
    gc.collect()
    before, references = sys.getallocatedblocks(), sys.getrefcount(_kernels.Layer)
    for _ in range(500):
        call()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200  # 500 leaked objects
    assert sys.getrefcount(_kernels.Layer) - references < 10


def test_runs_give_their_memory_back():
    """A run's intermediate results are some 100 KiB: 2000 that leak are 200 MiB."""
    from test_extension import resident

    for _ in range(20):
        run(threads=1)
    before = resident()
    for _ in range(2000):
        run(threads=1)
    assert resident() - before < 16 << 20
