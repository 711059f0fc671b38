"""Slots: rows of several requests in one call see the tokens of their own slot, whatever the others do."""

from __future__ import annotations

import copy

import pytest
import torch
from models import VOCABULARY, optimized, stock

from hfaccel.engine.kernels import kernels, kernels_problem
from hfaccel.engine.layers.slots import Piece, Slots, SlotsRefused

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")
# Rotary positions, windows in some or all layers, learned positions, eager attention, a joint projection.
FAMILIES = ["Llama", "Mistral, window", "Gemma2", "Gemma3", "GPT-2", "GPT-J", "GPT-NeoX", "OPT", "Cohere2"]
FAMILIES += ["GPT-OSS", "Qwen2-MoE"]  # sinks; an expert of all tokens
COUNT, TOKENS = 3, 40


def texts():
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, VOCABULARY, (1, length), generator=generator) for length in (33, 21, 12)]


def run(model, slots, *pieces):
    """Logits of every row of a call that computes (slot, past, ids) each."""
    positions = slots.begin([Piece(slot, past, ids.shape[1]) for slot, past, ids in pieces])
    ids = torch.cat([ids for *_, ids in pieces], 1)
    given = dict(attention_mask=slots.mask, position_ids=positions, past_key_values=slots)
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=True, **given).logits[0]


def expected(name, ids):
    with torch.inference_mode():
        return stock(name)(ids).logits[0]


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_text_sees_itself(name):
    """Chunks of a prompt, prompts of several texts in one call, and single tokens at different places."""
    model, slots = optimized(name), Slots(COUNT, TOKENS)
    one, two, three = texts()
    a, b, c = (expected(name, ids) for ids in (one, two, three))
    assert_close(run(model, slots, (2, 0, one[:, :20])), a[:20])
    got = run(model, slots, (2, 20, one[:, 20:30]), (0, 0, two[:, :19]))
    assert_close(got, torch.cat([a[20:30], b[:19]]))
    got = run(model, slots, (0, 19, two[:, 19:20]), (2, 30, one[:, 30:31]), (1, 0, three[:, :1]))
    assert_close(got, torch.stack([b[19], a[30], c[0]]))
    got = run(model, slots, (1, 1, three[:, 1:]), (2, 31, one[:, 31:32]), (0, 20, two[:, 20:]))
    assert_close(got, torch.cat([c[1:], a[31:32], b[20:]]))
    assert slots.written == set(range(model.config.num_hidden_layers))


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
def test_a_copied_beginning(name):
    model, slots = optimized(name), Slots(COUNT, TOKENS)
    one, two, _ = texts()
    run(model, slots, (0, 0, one))
    slots.copy(0, 1, 25)
    both = torch.cat([one[:, :25], two[:, :9]], 1)
    assert_close(run(model, slots, (1, 25, two[:, :9])), expected(name, both)[25:])
    assert_close(run(model, slots, (0, 33, two[:, :1])), expected(name, torch.cat([one, two[:, :1]], 1))[33:])


def test_a_slot_is_used_again():
    """What it held before, further back, is not seen."""
    model, slots = optimized("Llama"), Slots(1, TOKENS)
    one, two, _ = texts()
    run(model, slots, (0, 0, one))
    assert_close(run(model, slots, (0, 0, two)), expected("Llama", two))


def test_layers_apart_and_together():
    """A layer with a hook leaves the others' company, and its keys stay where they were."""
    model, slots = copy.deepcopy(optimized("Llama")), Slots(1, TOKENS)
    one, _, _ = texts()
    run(model, slots, (0, 0, one[:, :9]))
    hook = model.model.layers[1].register_forward_hook(lambda *_: None)
    wanted = expected("Llama", one)
    assert_close(run(model, slots, (0, 9, one[:, 9:20])), wanted[9:20])
    hook.remove()
    assert_close(run(model, slots, (0, 20, one[:, 20:])), wanted[20:])


def test_only_kernels_can():
    slots = Slots(1, TOKENS)
    with pytest.raises(SlotsRefused, match="layer 0 runs its own forward"):
        run(stock("Llama"), slots, (0, 0, texts()[0]))


@pytest.mark.parametrize(
    "piece", [(1, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 0), (0, TOKENS, 1), (0, 1, TOKENS)]
)
def test_pieces_lie_within_slots(piece):
    with pytest.raises(ValueError, match="must lie within 1 slots of 40 tokens"):
        Slots(1, TOKENS).begin([Piece(*piece)])


def test_rows_of_another_call():
    """A program that passes other rows than it said gets an error, not another request's tokens."""
    slots = Slots(1, TOKENS)
    slots.begin([Piece(0, 0, 5)])
    model, ids = optimized("Llama"), texts()[0][:, :6]
    given = dict(attention_mask=slots.mask, position_ids=torch.arange(6)[None], past_key_values=slots)
    with torch.inference_mode(), pytest.warns(UserWarning), pytest.raises(SlotsRefused):
        model(input_ids=ids, **given)


def test_bfloat16():
    model = copy.deepcopy(stock("Llama")).bfloat16()
    import hfaccel

    fast, slots = hfaccel.optimize(model), Slots(2, TOKENS)
    one, two, _ = texts()
    with torch.inference_mode():
        a, b = (fast(ids).logits[0].float() for ids in (one, two))
    got = run(fast, slots, (0, 0, one), (1, 0, two)).float()
    torch.testing.assert_close(got, torch.cat([a, b]), rtol=0, atol=0.15)


@pytest.mark.parametrize(
    "places", [[[0, 0], [0, 2]], [[0, 0], [1, 1]], [[-1, 0], [-1, 1]], [[0, -1], [0, 0]], [[0, 5], [0, 6]]]
)
def test_the_kernels_check_places(places):
    """Rows of a sequence follow one another in one slot, after at most `length` tokens."""
    native = kernels()
    made = torch.tensor(places, dtype=torch.int32)
    first, length = torch.tensor([0], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    sequences = native.Sequences(2, 1, first.data_ptr(), length.data_ptr(), 0, 0, -1, False)
    layer = optimized("Llama").model.layers[0].checked_native()
    past = native.Past(2, 4, 4096, 256, 16, False, 0, made.data_ptr())
    rows, memory = torch.zeros(2, 128), torch.zeros(1 << 16)
    with pytest.raises(ValueError, match="sequences within their columns"):
        native.run_layers(
            (layer.native,), 1, rows.data_ptr(), rows.data_ptr(), sequences, None, None, None, past,
            (memory.data_ptr(), memory.data_ptr()),
        )  # fmt: skip
