"""The kernels in use through Python: bad arguments, no memory, and a leak test for each function."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from hfaccel.engine.kernels import Kind, kernels, kernels_problem
from hfaccel.engine.weights.packed import PackedWeight
from hfaccel.memory import Arena
from hfaccel.native import Attention, FeedForward, Norms, Residual

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)

_kernels = kernels()

WIDTH, HEADS, WIDE, ROWS = 64, 4, 128, 6
KINDS = list(Kind)
NORM = _kernels.Norm(0, 0, 1e-5, 0)


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
MATRIX = (int(Kind.FLOAT32), WIDTH, WIDTH, KEPT[0].memory.data_ptr(), 0)
PARTS = [weight.matrix() for weight in KEPT]
LAYER = dict(zip(("query", "key", "value", "output", "gate", "up", "down"), PARTS, strict=True))
LAYER |= dict(attention_norm=NORM, output_norm=NORM, norm_first=False, added=1.0, activation=1)
LAYER |= dict(head_size=WIDTH // HEADS, attention_kind=0, scale=0.25, crossing=(None,) * 3)


def parts_of_layer(**changes):
    assert set(changes) <= set(LAYER)
    given = {**LAYER, **changes}
    attention = ("query", "key", "value", "output", "head_size", "attention_kind", "scale")
    return (
        Attention(*(given[name] for name in attention)),
        FeedForward(*(given[name] for name in ("gate", "up", "down", "activation"))),
        Norms(given["attention_norm"], given["output_norm"]),
        Residual(given["norm_first"], False, given["added"]),
        given["crossing"],
    )


def layer(**changes):
    return _kernels.Layer(*parts_of_layer(**changes))


SEQUENCES = dict(rows=ROWS, count=2, first=FIRST.data_ptr(), length=LENGTH.data_ptr(), skipped=0, seen=0)
SEQUENCES |= dict(window=-1, padding_sees_all=False)
BIAS = dict(numbers=X.data_ptr(), head=0, query=0)
ROTARY = dict(cosines=X.data_ptr(), sines=X.data_ptr(), angles=1, size=WIDTH // HEADS)
TOKENS = 5  # of a cache with room for two sequences of up to four rows
CACHE = torch.zeros(2, 2, HEADS, TOKENS, WIDTH // HEADS)
PAST = dict(
    columns=4, length=1, batch=CACHE.stride(1), head=CACHE.stride(2), token=CACHE.stride(3), bf16=False
)
PAST |= dict(seen=0)
CACHES = (CACHE[0].data_ptr(), CACHE[1].data_ptr())
BUCKET, INDEX = torch.randn(HEADS, WIDTH // HEADS, 32), torch.zeros(9, dtype=torch.int32)
RELATIVE = dict(keys=BUCKET.data_ptr(), queries=BUCKET.data_ptr(), buckets=1)
RELATIVE |= dict(index=INDEX.data_ptr(), reach=4)
RUN = dict(
    layers=(layer(),),
    threads=2,
    input=X.data_ptr(),
    output=OUT.data_ptr(),
    sequences=_kernels.Sequences(*SEQUENCES.values()),
    bias=None,
    rotary=None,
    relative=None,
)
LINEAR = dict(threads=2, matrix=PARTS[0], activation=0, input=X.data_ptr(), output=OUT.data_ptr(), rows=ROWS)

IDS = torch.tensor([0, 2, 5, 1, 0, 3])  # rows of X
EMBEDDING = dict(columns=WIDTH, norm=NORM, tables=((X.data_ptr(), ROWS),))
EMBED = dict(threads=2, embedding=_kernels.Embedding(*EMBEDDING.values()), ids=((IDS.data_ptr(), ROWS),))
EMBED |= dict(output=OUT.data_ptr(), rows=ROWS)


def embedding(**changes):
    return _kernels.Embedding(*{**EMBEDDING, **changes}.values())


def embed(**changes):
    return _kernels.embed(*{**EMBED, **changes}.values())


def sequences(**changes):
    return _kernels.Sequences(*{**SEQUENCES, **changes}.values())


def bias(**changes):
    return _kernels.Bias(*{**BIAS, **changes}.values())


def rotary(**changes):
    return _kernels.Rotary(*{**ROTARY, **changes}.values())


def past(**changes):
    return _kernels.Past(*{**PAST, **changes}.values())


def follow(**changes):
    """A decoder's call: what RUN says, after one token."""
    return run(**{"past": past(), "caches": CACHES, **changes})


def relative(**changes):
    return _kernels.Relative(*{**RELATIVE, **changes}.values())


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
    tolerance = {Kind.FLOAT32: 1e-5, Kind.BFLOAT16: 3e-2}.get(kind, 1e-1)
    torch.testing.assert_close(OUT, X @ kept[0].unpack().t(), rtol=0, atol=tolerance)


NARROW_WEIGHTS = [packed(32, 32) for _ in range(7)]
NARROW_PARTS = [weight.matrix() for weight in NARROW_WEIGHTS]
NARROW = layer(**dict(zip([*LAYER][:7], NARROW_PARTS, strict=True)))
ADDRESS = MATRIX[3]
REFUSED = (TypeError, ValueError, OverflowError)


def test_parts_of_a_layer_may_be_missing():
    layer(gate=None)
    run(bias=bias(), rotary=rotary(), relative=relative())


@pytest.mark.parametrize(
    "matrix",
    [
        MATRIX[:-1],
        (*MATRIX, 0),
        ("0", *MATRIX[1:]),
        (0.5, *MATRIX[1:]),
        (-1, *MATRIX[1:]),
        (len(KINDS), *MATRIX[1:]),
        (0, -1, *MATRIX[2:]),
        (0, WIDTH, -1, *MATRIX[3:]),
        (0, 0, WIDTH, ADDRESS, 0),
        (0, WIDTH, 0, ADDRESS, 0),
        (0, WIDTH, WIDTH, 0, 0),
        (0, WIDTH, WIDTH, None, 0),
        (2, WIDTH, WIDTH, ADDRESS, 0),  # int8 without scales
        *((2, *MATRIX[1:], numbers) for numbers in ((), (ADDRESS,) * 4, (ADDRESS,) * 6, None)),
        *((2, *MATRIX[1:], (*(ADDRESS * (i != zero) for i in range(3)), 0, 0)) for zero in range(3)),
        *((2, *MATRIX[1:], (*[ADDRESS] * 3, *exact)) for exact in ((ADDRESS, 0), (0, ADDRESS))),
        (0, *MATRIX[1:], (0, 0, 0, ADDRESS, ADDRESS)),  # exact inputs of float32
        (0, 1 << 70, WIDTH, *MATRIX[3:]),
    ],
)
def test_what_is_no_matrix_is_refused(matrix):
    with pytest.raises(REFUSED):
        _kernels.Matrix(*matrix)


@pytest.mark.parametrize("matrix", [None, MATRIX, [*MATRIX], NORM, 1])
def test_a_matrix_is_a_matrix(matrix):
    for call, name in ((linear, "matrix"), (layer, "query"), (layer, "output")):
        with pytest.raises(TypeError, match=r"_kernels.Matrix must be given, but got"):
            call(**{name: matrix})


@pytest.mark.parametrize(
    "norm", [(), (0, 0, 1e-5), (0, 0, 1e-5, 3), (0, 0, 1e-5, -1), (0, 0, "e", 0), ("0", 0, 0, 0)]
)
def test_what_is_no_norm_is_refused(norm):
    with pytest.raises(REFUSED):
        _kernels.Norm(*norm)


@pytest.mark.parametrize(
    "changes",
    [
        *({"head_size": value} for value in (0, -1, 1 << 62, 1 << 70, "1", None, 16.0)),
        *({"activation": value} for value in (-1, 9, 99, "gelu")),
        *({"attention_kind": value} for value in (-1, 2, 3)),
        *({name: NORM} for name in ("query", "up", "down")),
        *({name: PARTS[0]} for name in ("attention_norm", "output_norm")),
        *({"crossing": value} for value in (None, (), (None,) * 2, (NORM,) * 3)),
        {"scale": "1"},
        {"output": None},
        {"head_size": 15},
        {"head_size": 128},
    ],
)
def test_a_layer_with_bad_arguments_is_refused(changes):
    with pytest.raises(REFUSED):
        layer(**changes)


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("part", [None, (), 1, "shorter"])
def test_a_layer_of_incomplete_parts_is_refused(number, part):
    parts = [*parts_of_layer()]
    parts[number] = parts[number][1:] if part == "shorter" else part
    with pytest.raises(REFUSED):
        _kernels.Layer(*parts)


@pytest.mark.parametrize(
    "changes",
    [
        {"key": None},
        {"key": PARTS[5]},
        {"output": PARTS[5]},
        {"gate": PARTS[0]},
        {"up": None},
        {"down": PARTS[0]},
        {"down": PARTS[4]},
        {"query": NARROW_PARTS[0]},
    ],
)
def test_a_layer_of_parts_that_do_not_fit_is_refused(changes):
    with pytest.raises((TypeError, ValueError)):
        layer(**changes)


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


OUTSIDE = {
    "first": [int32(0, 3), int32(-1, 4), int32(4, 0), int32(0, 5), int32(0, 2**31 - 1)],
    "length": [int32(5, 2), int32(-1, 2), int32(4, 3), int32(4, 2**31 - 1)],
}


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("rows", "count")),
        *({name: 0} for name in ("first", "length", "rows")),
        *({name: value} for name in [*SEQUENCES][:-1] for value in ("1", 0.5, None)),
        *({name: each.data_ptr()} for name, values in OUTSIDE.items() for each in values),
        {"rows": 5},
        {"skipped": FIRST.data_ptr()},
        {"seen": FIRST.data_ptr()},
        {"skipped": LENGTH.data_ptr(), "seen": LENGTH.data_ptr()},
    ],
)
def test_sequences_that_do_not_fit_their_rows_are_refused(changes):
    with pytest.raises(REFUSED):
        sequences(**changes)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        *((bias, {name: value}) for name in BIAS for value in ("1", 0.5, None)),
        *((bias, {name: -1}) for name in ("head", "query")),
        (bias, {"numbers": 0}),
        *((rotary, {name: value}) for name in ROTARY for value in ("1", 0.5, None)),
        *((rotary, {name: 0}) for name in ("cosines", "sines", "angles")),
        *((rotary, {name: -1}) for name in ("angles", "size")),
        *((past, {name: value}) for name in PAST if name != "bf16" for value in ("1", 0.5, None)),
        *((past, {name: -1}) for name in ("columns", "length", "batch", "head", "token")),
        (past, {"columns": 0}),
        *((relative, {name: value}) for name in RELATIVE for value in ("1", 0.5, None)),
        *((relative, {name: -1}) for name in ("buckets", "reach")),
        *((relative, {name: 0}) for name in ("buckets", "index")),
        (relative, {"keys": 0, "queries": 0}),
    ],
)
def test_what_is_added_to_scores_with_bad_arguments_is_refused(make, changes):
    with pytest.raises(REFUSED):
        make(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: 0} for name in ("input", "output")),
        *({name: value} for name in [*RUN][:4] for value in ("1", 0.5, None)),
        *({name: value} for name in [*RUN][4:] for value in ("1", 0.5, (), NORM)),
        {"sequences": None},
        {"threads": 1 << 40},
    ],
)
def test_a_run_with_bad_arguments_is_refused(changes):
    with pytest.raises(REFUSED):
        run(**changes)


NONE = int32(0, 0)
ENCODED = torch.randn(2, 2, HEADS, 3, WIDTH // HEADS)  # three tokens of each of two texts


def crossing_layer(**changes):
    """One that attends to an encoder, too."""
    names = ["cross_query", "cross_output", "cross_norm"]
    parts = {**dict(zip(names, (PARTS[0], PARTS[3], NORM), strict=True)), **changes}
    own = {name: value for name, value in changes.items() if name in LAYER}
    return layer(**own, crossing=tuple(parts[name] for name in names))


def encoded(**changes):
    strides = dict(zip(("batch", "head", "token"), ENCODED.stride()[1:4], strict=True))
    return past(**{"length": 3, **strides, **changes})


def cross(**changes):
    """A call of such a layer."""
    places = ENCODED[0].data_ptr(), ENCODED[1].data_ptr()
    given = {"layers": (crossing_layer(),), "past": past(), "caches": CACHES}
    return run(**{**given, "encoded": encoded(), "of_encoder": places, **changes})


def test_an_encoder_is_seen():
    cross()
    before = OUT.clone()
    ENCODED[:, 0] *= 2
    cross()
    assert not torch.allclose(OUT[:4], before[:4]) and OUT[4:].equal(before[4:])
    hidden = int32(0, 3, 2, 3)
    cross(encoded=encoded(seen=hidden.data_ptr()))
    once = OUT.clone()
    ENCODED[:, 1, :, :2] = 9
    cross(encoded=encoded(seen=hidden.data_ptr()))
    assert OUT.equal(once)


BEYOND, NOTHING = int32(0, 3, 1, 4), int32(0, 3, 2, 2)  # the first token that is seen, and one behind those


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": (layer(),)},  # without weights for it
        {"encoded": 1},
        {"encoded": encoded(columns=3)},
        {"encoded": encoded(length=0)},
        {"encoded": encoded(seen=BEYOND.data_ptr())},
        {"encoded": encoded(seen=NOTHING.data_ptr())},
        *({"of_encoder": value} for value in ((), CACHES[:1], (0, CACHES[1]), ("1", 1))),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(changes):
    with pytest.raises(REFUSED):
        cross(**changes)


@pytest.mark.parametrize("changes", [{"cross_query": PARTS[4]}, {"cross_output": PARTS[6]}, {"added": 0.5}])
def test_weights_that_do_not_fit_an_encoder_are_refused(changes):
    with pytest.raises(REFUSED):
        crossing_layer(**changes)


LATE, BEFORE = int32(0, 9, 3, 9), int32(-1, 9, 0, 9)  # the first token that is seen, and one behind those
EMPTY = int32(0, 0, 0, 9)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary": rotary(size=WIDTH // HEADS + 2)},
        {"rotary": rotary(size=3)},
        *({"rotary": each} for each in ((), (None, None), (1,), (rotary(size=3),))),
        {"past": 1},
        *({"caches": value} for value in ((), CACHES[:1], CACHES * 2, (0, CACHES[1]), ("1", 1), [*CACHES])),
        {"past": past(columns=3)},  # a sequence has four rows
        {"past": past(seen=LATE.data_ptr())},
        {"past": past(seen=BEFORE.data_ptr())},
        {"past": past(seen=EMPTY.data_ptr())},
        {"sequences": sequences(skipped=NONE.data_ptr(), seen=LENGTH.data_ptr())},
    ],
)
def test_a_past_that_does_not_fit_is_refused(changes):
    with pytest.raises(REFUSED):
        follow(**changes)


def test_tokens_are_added_to_a_cache_and_see_those_before():
    CACHE.fill_(0.5)
    follow()
    once = OUT.clone()
    assert not (CACHE[:, 0, :, 1:5] == 0.5).any() and not (CACHE[:, 1, :, 1:3] == 0.5).any()
    assert (CACHE[:, 1, :, 3:] == 0.5).all() and (CACHE[:, :, :, 0] == 0.5).all()
    CACHE[:, :, :, 0] = -3
    follow()
    assert not torch.allclose(once, OUT)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: -1} for name in ("rows", "activation")),
        *({name: 0} for name in ("input", "output")),
        *({name: value} for name in LINEAR for value in ("1", 0.5, None)),
        {"activation": 9},
    ],
)
def test_a_linear_layer_with_bad_arguments_is_refused(changes):
    with pytest.raises(REFUSED):
        linear(**changes)


def test_embeddings_are_looked_up_and_normed():
    assert embed() is True
    torch.testing.assert_close(OUT, torch.nn.functional.layer_norm(X[IDS], (WIDTH,)))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in EMBED for value in ("1", 0.5, None)),
        *({"ids": value} for value in ((), EMBED["ids"] * 2, (None,), (1,), ((1,),), ((1, 2, 3),))),
        *({"ids": ((IDS.data_ptr() * (i > 0), ROWS * (i < 1)),)} for i in range(2)),
        {"output": 0},
        {"rows": -1},
    ],
)
def test_embeddings_with_bad_arguments_are_refused(changes):
    with pytest.raises(REFUSED):
        embed(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name in EMBEDDING for value in ("1", 0.5, None)),
        *({"columns": value} for value in (0, -1)),
        *({"tables": value} for value in ((), EMBEDDING["tables"] * 9, (None,), (1,), ((1,),), ((1, 2, 3),))),
        *({"tables": (table,)} for table in ((0, ROWS), (X.data_ptr(), 0), (X.data_ptr(), -1))),
    ],
)
def test_what_is_no_embedding_is_refused(changes):
    with pytest.raises(REFUSED):
        embedding(**changes)


def test_ids_of_no_row_are_told():
    for bad in (-1, ROWS, -(1 << 63)):
        ids = torch.tensor([0, bad])
        OUT.fill_(7)
        assert embed(ids=((ids.data_ptr(), 2),), rows=2) is False
        assert (OUT == 7).all()


def test_numbers_are_counted():
    numbers = torch.tensor([0, 7, -(1 << 63), 7, 1 << 40])
    for value in (0, 7, -(1 << 63), 1 << 40, 8):
        assert _kernels.count(numbers.data_ptr(), 5, value) == int((numbers == value).sum())
    assert _kernels.count(0, 0, 7) == 0
    for arguments in ((0, 1, 7), (numbers.data_ptr(), -1, 7), (numbers.data_ptr(), 5, 1 << 64), ("1", 5, 7)):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            _kernels.count(*arguments)


TYPES = [each for each in vars(_kernels).values() if isinstance(each, type)]


@pytest.mark.parametrize(
    "function", [*TYPES, _kernels.linear, _kernels.run_layers, _kernels.embed, _kernels.count]
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
    for each in TYPES:
        with pytest.raises(TypeError, match="no keyword arguments"):
            each(rows=1)


def test_no_memory_is_a_memory_error():
    """More rows than addresses: nothing is read."""
    wide = packed(64, 512)  # its rows are copied
    with pytest.raises(MemoryError):
        linear(matrix=wide.matrix(), rows=1 << 44)


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
        ((None,), TypeError, "_kernels.Layer must be given, but got None"),
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
    run(sequences=sequences(count=0))
    assert not OUT.any()
    run(sequences=sequences(count=0, rows=0), input=0, output=0)


EXPERT, SHARE = torch.zeros(ROWS, dtype=torch.int64), torch.ones(ROWS)  # of each row
TOKENS_OF_EXPERTS = (X.data_ptr(), OUT.data_ptr(), ROWS, False)
CHOSEN = (EXPERT.data_ptr(), SHARE.data_ptr(), 1, False)


def experts(count=1, parts=(None, PARTS[5], PARTS[6])):
    return _kernels.Experts(count, parts, (0, 0), 1, (0.0, 0.0, 0.0), ((0, False), (0, False)), False)


@pytest.mark.parametrize(
    "changes", [{"count": 0}, {"count": -1}, {"parts": (None, PARTS[5], PARTS[5])}, {"parts": PARTS[4:6]}]
)
def test_experts_that_do_not_fit_are_refused(changes):
    with pytest.raises(REFUSED):
        experts(**changes)


def test_an_expert_that_there_is_not():
    OUT.fill_(7)
    beyond = torch.full((ROWS,), 1)
    assert not _kernels.experts(1, experts(), TOKENS_OF_EXPERTS, (beyond.data_ptr(), *CHOSEN[1:]))
    assert (OUT == 7).all()
    assert _kernels.experts(1, experts(), TOKENS_OF_EXPERTS, CHOSEN)
    assert not (OUT == 7).any()


# Leaks

LEAK_TESTS = {
    "Matrix": lambda: _kernels.Matrix(*MATRIX),
    "Norm": lambda: _kernels.Norm(0, 0, 1e-5, 0),
    "Layer": layer,
    "Sequences": sequences,
    "Bias": bias,
    "Rotary": rotary,
    "Relative": relative,
    "Past": past,
    "run_layers after others": lambda: follow(threads=1),
    "run_layers beside an encoder": lambda: cross(threads=1),
    "caches that are refused": lambda: refused(follow, caches=(1,)),
    "Embedding": embedding,
    "run_layers": lambda: run(threads=1),
    "layers that are refused": lambda: refused(run, layers=(1,)),
    "linear": lambda: linear(threads=1),
    "embed": lambda: embed(threads=1),
    "Experts": experts,
    "experts": lambda: _kernels.experts(1, experts(), TOKENS_OF_EXPERTS, CHOSEN),
    "experts that are refused": lambda: refused(experts, count=0),
    "ids that are refused": lambda: refused(embed, ids=(1,)),
    "count": lambda: _kernels.count(IDS.data_ptr(), IDS.numel(), 1 << 40),
    "use_threads": lambda: refused(_kernels.use_threads, -1),  # a real one is in use
    "use_cache": lambda: refused(_kernels.use_cache, -1),
    "a matrix that is refused": lambda: refused(_kernels.Matrix, -1, *MATRIX[1:]),
    "a layer that is refused": lambda: refused(layer, key=None),
    "an embedding that is refused": lambda: refused(embedding, tables=(EMBEDDING["tables"][0], (1,))),
    "sequences that are refused": lambda: refused(sequences, rows=1),
    "no memory": lambda: refused(linear, matrix=WIDE_MATRIX, rows=1 << 44),
}
WIDE_WEIGHT = packed(64, 512)
WIDE_MATRIX = WIDE_WEIGHT.matrix()


def refused(function, *arguments, **changes):
    with pytest.raises((*REFUSED, MemoryError)):
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
    before, references = sys.getallocatedblocks(), [sys.getrefcount(each) for each in TYPES]
    for _ in range(500):
        call()
    gc.collect()
    assert sys.getallocatedblocks() - before < 200  # 500 leaked objects
    assert all(sys.getrefcount(each) - old < 10 for each, old in zip(TYPES, references, strict=True))


def test_runs_give_their_memory_back():
    """A run's intermediate results are some 100 KiB: 2000 that leak are 200 MiB."""
    from test_extension import resident

    for _ in range(20):
        run(threads=1)
    before = resident()
    for _ in range(2000):
        run(threads=1)
    assert resident() - before < 16 << 20
