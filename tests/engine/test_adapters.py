"""Encoders that are called otherwise than most: DeBERTa-v2's distances, T5's bias."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from conftest import at_once
from encoders import DEBERTA, T5, inputs, make, random_vectors, real, run
from hypothesis import given, settings
from hypothesis import strategies as st

import hfaccel
from hfaccel import engine
from hfaccel.engine.calls.last_seen import LastSeen
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.distances import bucket_index
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

SHARED, OWN = "DeBERTa-v2", "DeBERTa-v2, own keys"


def assert_equal(fast, stock, inputs_of):
    torch.testing.assert_close(
        real(run(fast, inputs_of), inputs_of), real(run(stock, inputs_of), inputs_of), rtol=0, atol=1e-5
    )


def pair(name):
    return make(name), hfaccel.optimize(make(name))


def stock_calls(model):
    return list(engine.stock_calls(model))


# Distances


@pytest.mark.parametrize("name", [SHARED, OWN, "DeBERTa-v2, c2p"])
def test_distances_beyond_all_buckets(name):
    stock, fast = pair(name)
    for side in ("right", "left", "none"):
        assert_equal(fast, stock, inputs(name, side, length=150))
    assert not stock_calls(fast)


@pytest.mark.parametrize("length", [1, 2, 31, 33])
def test_lengths_in_turn(length):
    stock, fast = pair(OWN)
    for each in (length, 9, length):
        assert_equal(fast, stock, inputs(OWN, "none", length=each))


CHANGES = {
    "a bucket's key": lambda model: model.encoder.layer[0].attention.self.pos_key_proj.weight.mul_(1.5),
    "a bucket's query": lambda model: model.encoder.layer[1].attention.self.pos_query_proj.weight.mul_(1.5),
    "a bias": lambda model: model.encoder.layer[0].attention.self.pos_query_proj.bias.data.add_(0.5),
    "the embeddings": lambda model: model.encoder.rel_embeddings.weight.data[::2].mul_(-1),
    "their norm": lambda model: model.encoder.LayerNorm.weight[::2].mul_(-1),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_changes_in_place_is_seen(change, mode):
    stock, fast = pair(OWN)
    given = inputs(OWN)
    before = run(fast, given)
    for model in (stock, fast):
        with mode():
            CHANGES[change](model)
    assert (run(fast, given) - before).abs().max() > 1e-3
    assert_equal(fast, stock, given)


def test_a_shared_projection_that_changes_is_seen():
    stock, fast = pair(SHARED)
    run(fast, inputs(SHARED))
    for model in (stock, fast):
        with torch.no_grad():
            model.encoder.layer[0].attention.self.key_proj.weight.mul_(1.5)
    assert_equal(fast, stock, inputs(SHARED))


def test_embeddings_without_norm_that_change_are_seen():
    stock, fast = pair("DeBERTa-v2, p2c")
    given = inputs(SHARED)
    run(fast, given)
    for model in (stock, fast):
        with torch.no_grad():
            model.encoder.rel_embeddings.weight.mul_(2)
    assert_equal(fast, stock, given)


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}], ids=["float32", "bfloat16"])
def test_buckets_are_projected_once(options):
    stock = make(OWN)
    with torch.inference_mode():
        fast = hfaccel.optimize(stock, **options)
    run(fast, inputs(OWN))
    layers = [module for module in fast.modules() if isinstance(module, FusedLayer)]
    first = [layer._hfaccel_native.buckets for layer in layers]
    assert first[0].embeddings is first[1].embeddings
    run(fast, inputs(OWN, length=9))
    assert all(layer._hfaccel_native.buckets is each for layer, each in zip(layers, first, strict=True))


def test_models_in_turn_and_at_once():
    stock, fast = zip(*(pair(name) for name in (SHARED, OWN)), strict=True)
    given = [inputs(SHARED, seed=seed) for seed in range(2)]
    expected = [[run(model, each) for each in given] for model in fast]
    for model, other in zip(fast, stock, strict=True):
        assert_equal(model, other, given[0])

    def work(number):
        turns = [((number + turn) % 2, turn % 2) for turn in range(6)]
        return all(torch.equal(run(fast[model], given[each]), expected[model][each]) for model, each in turns)

    assert all(at_once(3, work))


@pytest.mark.parametrize("name", [SHARED, OWN, "T5, gated", "UMT5"])
def test_copies_and_pickles(name):
    stock, fast = pair(name)
    given = inputs(name)
    run(fast, given)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        with torch.no_grad():
            next(fast.parameters()).add_(0.1)  # of one alone
        assert_equal(other, stock, given)
        assert sum(isinstance(module, FusedLayer) for module in other.modules()) == 2
    restored = hfaccel.restore(pickle.loads(pickle.dumps(hfaccel.optimize(make(name)))))
    assert not any(isinstance(module, FusedLayer) for module in restored.modules())
    assert_equal(restored, stock, given)


@pytest.mark.parametrize("name", [OWN, "T5, gated"])
def test_saved_and_loaded(name, tmp_path):
    stock, fast = pair(name)
    with pytest.warns(RuntimeWarning, match="the model was not loaded from a checkpoint"):
        hfaccel.save(fast, tmp_path)
    loaded = hfaccel.load(tmp_path)
    assert_equal(loaded, stock, inputs(name))
    assert not stock_calls(loaded)


@pytest.mark.parametrize("name", [SHARED, OWN, "T5", "UMT5"])
def test_a_shared_model_computes_the_same(name):
    fast = hfaccel.optimize(make(name))
    expected = run(fast, inputs(name))
    hfaccel.memory.share(fast)
    assert torch.equal(run(fast, inputs(name)), expected)


@pytest.mark.parametrize("name", [SHARED, "T5", "UMT5, gated"])
def test_a_mask_with_holes_gives_equal_results(name):
    stock, fast = pair(name)
    given = inputs(name)
    given["attention_mask"][0, 3:5] = 0
    assert_equal(fast, stock, given)
    assert stock_calls(fast) == ["the attention mask has holes"]


def test_a_mask_of_pairs_that_hides_more_is_obeyed():
    stock, fast = (model.encoder for model in pair(OWN))
    hidden, mask = torch.randn(3, 17, 64), torch.ones(3, 17, 17).tril()
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden, mask)[0], stock(hidden, mask)[0], rtol=0, atol=1e-5)
    assert stock_calls(fast) == ["the attention mask hides more than padding"]


@pytest.mark.parametrize("name", [SHARED, "T5", "UMT5"])
def test_hidden_states_are_equal(name):
    stock, fast = pair(name)
    given = inputs(name, "none")
    with torch.inference_mode():
        expected, got = (model(**given, output_hidden_states=True).hidden_states for model in (stock, fast))
    assert len(got) == len(expected) == 3
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert not stock_calls(fast)


def test_attentions_are_those_of_stock():
    stock, fast = pair(OWN)
    with torch.inference_mode():
        expected, got = (model(**inputs(OWN), output_attentions=True).attentions for model in (stock, fast))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert stock_calls(fast) == ["output_attentions was passed"]


REASONS = {
    "do not depend on the distance alone": torch.randint(-8, 8, (1, 17, 17)),
    "are not opposite": (torch.arange(17)[:, None] - torch.arange(17))[None] + 1,
    "have the shape (2, 17, 17)": torch.zeros(2, 17, 17, dtype=torch.long),
}


@pytest.mark.parametrize("reason", REASONS)
def test_other_relative_positions_run_stock(reason):
    """Only a program that calls the encoder itself can pass them."""
    stock, fast = pair(OWN)
    hidden, mask = torch.randn(2, 17, 64), torch.ones(2, 17)
    with torch.inference_mode():
        try:
            expected = stock.encoder(hidden, mask, relative_pos=REASONS[reason])[0]
        except RuntimeError:
            with pytest.raises(RuntimeError):
                fast.encoder(hidden, mask, relative_pos=REASONS[reason])
        else:
            got = fast.encoder(hidden, mask, relative_pos=REASONS[reason])[0]
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert reason in str(stock_calls(fast))


@given(length=st.integers(1, 60), span=st.integers(1, 40), clip=st.integers(0, 70))
@settings(max_examples=60)
def test_the_index_finds_the_bucket_of_every_pair(length, span, clip):
    place = torch.arange(length)
    distances = (place[:, None] - place[None, :]).clamp(-clip, clip)
    index = bucket_index(distances[None], length, span)
    assert index.dtype is torch.int32 and len(index) == 2 * length - 1
    bucket = (distances + span).clamp(0, 2 * span - 1)
    of_pairs = index.long()[place[None, :] - place[:, None] + length - 1]
    assert torch.equal(2 * span - 1 - of_pairs, bucket)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize(
    "change", [lambda t: t.add_(1), lambda t: t.detach().numpy().fill(7)], ids=["in torch", "in numpy"]
)
@pytest.mark.parametrize("shape", [(3,), (4, 6), (2, 1)])
def test_what_was_made_of_the_last_tensor_is_made_again_when_its_values_changed(inference, change, shape):
    seen, made = LastSeen(), []

    def get(tensor):
        return seen.get(tensor, (), lambda: made.append(tensor.sum().item()) or len(made))

    with torch.inference_mode(inference):
        tensor = torch.ones(shape)
        views = [tensor, tensor.expand(5, *shape)]
    for number, view in enumerate(views):
        assert [get(view) for _ in range(3)] == [2 * number + 1] * 3
        with torch.inference_mode(inference):
            change(tensor)
        assert [get(view) for _ in range(3)] == [2 * number + 2] * 3
        with torch.inference_mode(inference):
            tensor.fill_(1)
    assert get(torch.ones(3)) == 5


def test_nothing_is_kept_of_a_tensor_that_is_gone():
    seen = LastSeen()
    tensor = torch.ones(3)
    seen.get(tensor, (), lambda: "made")
    del tensor
    assert seen._last is None


# T5


def sizes_of(**changes):
    return {**T5, "num_decoder_layers": 2, **changes}


@pytest.mark.parametrize("kind", ["T5", "MT5", "UMT5"])
def test_a_decoder_beside_the_encoder_is_fused_too(kind):
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes_of(feed_forward_proj="gated-gelu"))
    stock = random_vectors(getattr(transformers, f"{kind}ForConditionalGeneration")(config))
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), inputs("T5")
    with torch.inference_mode():
        expected = stock.generate(**given, max_new_tokens=5, do_sample=False)
        assert torch.equal(fast.generate(**given, max_new_tokens=5, do_sample=False), expected)
    for part in (fast.get_encoder(), fast.get_decoder()):
        assert all(isinstance(block, FusedLayer) for block in part.block)
    assert not stock_calls(fast)


@pytest.mark.parametrize("name", ["T5", "UMT5, gated"])
def test_a_bias_that_changes_is_seen(name):
    stock, fast = pair(name)
    run(fast, inputs(name))
    for model in (stock, fast):
        with torch.no_grad():
            model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(3)
    assert_equal(fast, stock, inputs(name))
    assert not stock_calls(fast)


@pytest.mark.parametrize("length", [1, 2, 70])
@pytest.mark.parametrize("name", ["T5", "UMT5"])
def test_any_length(name, length):
    stock, fast = pair(name)
    assert_equal(fast, stock, inputs(name, "none", length=length))
    assert not stock_calls(fast)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("passed", [True, False])
def test_a_block_gives_what_it_gives_in_stock(number, passed):
    stock, fast = (model.encoder.block[number] for model in pair("T5"))
    hidden, bias = torch.randn(2, 9, 64), torch.randn(1, 4, 9, 9) if passed else None
    with torch.inference_mode():
        expected, got = (block(hidden, None, bias) for block in (stock, fast))
    assert len(got) == len(expected) == 3 and got[2] is None
    for a, b in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_a_bias_of_each_sequence_runs_stock():
    stock, fast = (model.encoder.block[1] for model in pair("T5"))
    hidden, bias = torch.randn(2, 9, 64), torch.randn(2, 4, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden, None, bias)[0], stock(hidden, None, bias)[0])
    assert list(engine.stock_calls(fast)) == ["the position bias differs between sequences"]


def test_eager_attention_gives_its_attentions():
    stock, fast = make("T5"), make("T5")
    for model in (stock, fast):
        model.set_attn_implementation("eager")
    fast = hfaccel.optimize(fast)
    with torch.inference_mode():
        expected, got = (model(**inputs("T5"), output_attentions=True).attentions for model in (stock, fast))
    assert len(got) == len(expected) == 2
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_older_sizes_are_fused_too():
    """relative positions without buckets, and wide heads."""
    import transformers

    config = transformers.DebertaV2Config(**{**DEBERTA, "position_buckets": -1, "num_attention_heads": 1})
    stock = random_vectors(transformers.DebertaV2Model(config))
    given = inputs(OWN)
    expected = real(run(stock, given), given)
    fast = hfaccel.optimize(stock)
    torch.testing.assert_close(real(run(fast, given), given), expected, rtol=0, atol=1e-5)
    assert not stock_calls(fast)


def test_a_layer_without_masks_refuses_one():
    """As YOLOS' own forward does; and what is no argument of it is its error."""
    model = hfaccel.optimize(make("YOLOS"))
    layer, hidden = model.encoder.layer[0], torch.randn(1, 5, 64)
    with torch.inference_mode():
        layer(hidden)
        with pytest.raises(TypeError, match="positional argument"):
            layer(hidden, torch.ones(1, 1, 5, 5, dtype=torch.bool))
    assert hfaccel.report(model).stock_calls == {"an attention mask was passed": 1}
