"""Decoder layers that attend to an encoder: what their caches show, and which calls they leave to stock."""

from __future__ import annotations

import copy
import pickle
from functools import cache

import pytest
import torch
import transformers
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import hfaccel
from hfaccel.engine.calls.followed import read_spans
from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

SHARED = dict(
    vocab_size=100, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, d_model=64
)
BART = dict(
    encoder_layers=3, decoder_layers=3, encoder_ffn_dim=128, decoder_ffn_dim=128, encoder_attention_heads=4
)
BART |= dict(decoder_attention_heads=4, max_position_embeddings=64)
T5 = dict(d_kv=16, d_ff=128, num_layers=3, num_heads=4)
IDS = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 6:] = 0
TOKENS = torch.randint(3, 100, (2, 5), generator=torch.Generator().manual_seed(1))


@cache
def stock(name):
    torch.manual_seed(0)
    if name == "T5":
        return transformers.T5ForConditionalGeneration(transformers.T5Config(**SHARED, **T5)).eval()
    if name == "GPT-2":  # whose keys and values are one projection
        return encoder_and_gpt2()
    return transformers.BartForConditionalGeneration(transformers.BartConfig(**SHARED, **BART)).eval()


def encoder_and_gpt2():
    text = dict(vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
    encoder = transformers.BertConfig(**text, intermediate_size=128, max_position_embeddings=64)
    decoder = transformers.GPT2Config(vocab_size=100, n_embd=64, n_layer=3, n_head=4, n_positions=256)
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    return transformers.EncoderDecoderModel(config).eval()


class Both:
    """A stock model and its optimized one, each with its caches, which are given the same."""

    def __init__(self, name):
        model = stock(name)
        self.models = model, hfaccel.optimize(copy.deepcopy(model), backend="torch")
        self.caches = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2)]

    def step(self, tokens, caches=None, mask=MASK, ids=IDS, **more):
        results = []
        for model, kept in zip(self.models, caches or self.caches, strict=True):
            given = dict(input_ids=ids, attention_mask=mask, past_key_values=kept, use_cache=True)
            with torch.inference_mode():
                results.append(model(decoder_input_ids=tokens, **given, **more).logits)
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
        self.same(caches or self.caches)
        return results[1]

    def same(self, caches):
        expected, got = caches
        assert got.is_updated == expected.is_updated
        assert_same(got.self_attention_cache, expected.self_attention_cache)
        if len(got.cross_attention_cache.layers[0].keys) == 2:
            assert_same(got.cross_attention_cache, expected.cross_attention_cache, ends=(9, 6))

    def same_values(self):
        assert_same(*(kept.self_attention_cache for kept in reversed(self.caches)))

    @property
    def stock_calls(self):
        return hfaccel.report(self.models[1]).stock_calls


def assert_same(got, expected, ends=(None,) * 4):
    """Up to the end of each text: hfaccel does not compute padding of an encoder."""
    for one, other in zip(got.layers, expected.layers, strict=True):
        for name in ("keys", "values"):
            assert getattr(one, name).shape == getattr(other, name).shape
            for own, wanted, end in zip(getattr(one, name), getattr(other, name), ends, strict=False):
                torch.testing.assert_close(own[:, :end], wanted[:, :end], rtol=1e-4, atol=1e-4)


@pytest.fixture(params=["BART", "T5", "GPT-2"])
def both(request):
    return Both(request.param)


def test_steps(both):
    """Several tokens at once, one, several behind others, and more than are read as they lie."""
    both.step(TOKENS)
    both.step(TOKENS[:, :1])
    both.step(TOKENS[:, :3])
    both.step(torch.cat([TOKENS, TOKENS], 1))
    assert not both.stock_calls


def test_the_encoder_is_projected_once(both, monkeypatch):
    from hfaccel.engine.layers import crossing

    calls = []
    project = crossing.from_states
    monkeypatch.setattr(crossing, "from_states", lambda *args: calls.append(1) or project(*args))
    for _ in range(3):
        both.step(TOKENS[:, :1])
    assert len(calls) == 1


def test_what_the_cache_of_the_encoder_shows_counts(both):
    """As it is now: changed in place, or replaced by other tensors of other strides."""
    first = both.step(TOKENS[:, :1])
    for kept in both.caches:
        for layer in kept.cross_attention_cache.layers:
            with torch.inference_mode():
                layer.keys.mul_(0.5)
            layer.values = layer.values.transpose(2, 3).contiguous().transpose(2, 3) * 2
    assert not torch.allclose(both.step(TOKENS[:, :1]), first, atol=1e-3)
    assert not both.stock_calls


def test_reordered_cropped_and_copied(both):
    both.step(TOKENS)
    for kept in both.caches:
        kept.reorder_cache(torch.tensor([1, 0]))
    both.step(TOKENS[:, :2], mask=MASK.flip(0), ids=IDS.flip(0))
    copies = copy.deepcopy(both.caches), pickle.loads(pickle.dumps(both.caches))
    for kept in both.caches:
        kept.crop(-2)
    both.step(TOKENS[:, 3:4], mask=MASK.flip(0), ids=IDS.flip(0))
    for pair in copies:
        both.step(TOKENS[:, 2:3], pair, mask=MASK.flip(0), ids=IDS.flip(0))
    assert not both.stock_calls


def test_padding_before_the_texts_of_the_encoder(both):
    both.step(TOKENS, mask=MASK.flip(1))
    assert not both.stock_calls


def test_a_mask_with_holes_takes_the_stock_layer(both):
    mask = MASK.clone()
    mask[:, 2] = 0
    both.caches = both.caches[:1] * 2  # their values differ where padding is not computed
    model = both.models[1]
    with torch.inference_mode():
        expected, got = (
            each(input_ids=IDS, attention_mask=mask, decoder_input_ids=TOKENS, use_cache=False).logits
            for each in both.models
        )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (
        "the encoder's attention mask hides more than padding around the texts"
        in hfaccel.report(model).stock_calls
    )


def test_padding_among_the_own_tokens(both):
    """Before and behind them; rows of padding are computed as stock does."""
    for mask in (MASK[:, :5].clone(), MASK[:, :5].clone()):
        mask[1, :2] = 0
        both.caches = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2)]
        both.step(TOKENS, decoder_attention_mask=mask)


def test_a_static_cache_takes_the_stock_layer(both):
    config = both.models[0].config
    both.caches = [EncoderDecoderCache(StaticCache(config, 16), StaticCache(config, 9)) for _ in range(2)]
    results = []
    for model, kept in zip(both.models, both.caches, strict=True):
        given = dict(input_ids=IDS, attention_mask=None, past_key_values=kept, use_cache=True)
        with torch.inference_mode():
            results += [model(decoder_input_ids=TOKENS[:, :1], **given).logits for _ in range(2)]
    torch.testing.assert_close(torch.stack(results[2:]), torch.stack(results[:2]), rtol=1e-4, atol=1e-4)
    assert "the cache of the encoder's tokens is a StaticCache, or offloaded" in both.stock_calls


def test_a_hook_on_the_encoders_projection_is_called(both):
    calls = []
    path = "decoder.block.0.layer.1.EncDecAttention.k"
    if "Bart" in type(both.models[0]).__name__:
        path = "model.decoder.layers.0.encoder_attn.k_proj"
    if "EncoderDecoder" in type(both.models[0]).__name__:
        path = "decoder.transformer.h.0.crossattention.c_attn"
    hooks = [
        model.get_submodule(path).register_forward_hook(lambda *given: calls.append(1) or given[2] * 0.5)
        for model in both.models
    ]
    both.step(TOKENS)
    assert len(calls) == 2
    for hook in hooks:
        hook.remove()


def test_a_changed_bias_of_distances_counts():
    both = Both("T5")
    before = both.step(TOKENS)
    for model in both.models:
        with torch.no_grad():
            model.decoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight.mul_(-3)
    both.caches = [EncoderDecoderCache(DynamicCache(), DynamicCache()) for _ in range(2)]
    assert not torch.allclose(both.step(TOKENS), before, atol=1e-3)
    assert not both.stock_calls


def test_a_text_longer_than_the_kept_row_of_biases():
    both = Both("T5")
    for length in (4, 150, 20):
        both.step(torch.randint(3, 100, (2, length), generator=torch.Generator().manual_seed(length)))
    both.step(TOKENS[:, :1])
    assert not both.stock_calls


def test_layers_one_by_one_hand_the_bias_on():
    """Where hidden states are collected."""
    both = Both("T5")
    both.step(TOKENS, output_hidden_states=True)
    both.step(TOKENS[:, :1], output_hidden_states=True)
    assert not both.stock_calls


def test_without_an_encoder():
    """A decoder alone, whose layers leave out their cross-attention."""
    torch.manual_seed(0)
    model = transformers.BartForCausalLM(transformers.BartConfig(**SHARED, **BART)).eval()
    fast = hfaccel.optimize(copy.deepcopy(model), backend="torch")
    given = dict(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=100)
    assert fast.generate(TOKENS, **given).equal(model.generate(TOKENS, **given))
    assert not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize("name", ["BART", "T5"])
def test_training_is_that_of_stock(name):
    losses = []
    for model in (copy.deepcopy(stock(name)), hfaccel.optimize(copy.deepcopy(stock(name)), backend="torch")):
        loss = model(input_ids=IDS, attention_mask=MASK, labels=TOKENS).loss
        loss.backward()
        losses.append(
            torch.stack(
                [loss.detach(), *(each.grad.norm() for each in model.parameters() if each.grad is not None)]
            )
        )
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("precision", [{"dtype": torch.bfloat16}, {"quantization": "int8"}], ids=str)
def test_other_precisions_are_close(both, precision):
    model = both.models[0]
    fast = hfaccel.optimize(copy.deepcopy(model), backend="torch", **precision)
    with torch.inference_mode():
        expected, got = (
            each(input_ids=IDS, attention_mask=MASK, decoder_input_ids=TOKENS).logits.float()
            for each in (model, fast)
        )
    assert torch.nn.functional.cosine_similarity(expected, got, dim=-1).min() > 0.95
    assert not hfaccel.report(fast).stock_calls


def test_spans():
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1]]).bool()[:, None, None]
    assert read_spans(mask, 2, 1, 4).tolist() == [[0, 3], [1, 4]]
    assert read_spans(mask.expand(-1, -1, 3, -1), 2, 3, 4).tolist() == [[0, 3], [1, 4]]
    assert read_spans(torch.where(mask, 0.0, -1e38), 2, 1, 4).tolist() == [[0, 3], [1, 4]]
    assert read_spans(torch.ones_like(mask), 2, 1, 4) is None
    for other, reason in (
        (torch.tensor([[1, 0, 1, 1]]).bool()[:, None, None], "hides more"),
        (torch.zeros(2, 1, 1, 4).bool(), "all padding"),
        (torch.full((2, 1, 1, 4), 0.5), "adds to the scores"),
        (mask[..., :3], "has the shape"),
        (torch.ones(2, 1, 3, 4).tril().bool(), "hides more"),
    ):
        assert reason in read_spans(other, 2, other.shape[2], 4)


def test_beams_copy_what_changes_alone(both):
    """Rows of one text are equal in the encoder's cache, which stays as it is; an order that is the same
    changes nothing; another one is that of stock, and room for the next tokens is there already."""
    ids, mask = IDS.repeat_interleave(2, 0), MASK.repeat_interleave(2, 0)
    tokens = torch.randint(3, 100, (4, 3), generator=torch.Generator().manual_seed(2))
    given = dict(ids=ids, mask=mask)

    def assert_copied(own, encoder, order):
        before = [kept_tensors(both.caches[1])]
        for kept in both.caches:
            kept.reorder_cache(torch.tensor(order))
        before.append(kept_tensors(both.caches[1]))
        both.same(both.caches)
        for number, wanted in enumerate((own, encoder)):
            changed = [
                one.data_ptr() != other.data_ptr()
                for one, other in zip(before[0][number], before[1][number], strict=True)
            ]
            assert changed == [wanted] * 6

    both.step(tokens, **given)
    assert_copied(False, False, [0, 1, 2, 3])
    assert_copied(True, False, [1, 0, 2, 2])
    memory = kept_tensors(both.caches[1])[0][0].untyped_storage().data_ptr()
    both.step(tokens[:, :1], **given)
    assert kept_tensors(both.caches[1])[0][0].untyped_storage().data_ptr() == memory
    assert_copied(True, True, [2, 2, 0, 1])
    both.step(tokens[:, 1:2], ids=ids[[2, 2, 0, 1]], mask=mask[[2, 2, 0, 1]])
    assert not both.stock_calls


def kept_tensors(pair):
    caches = pair.self_attention_cache, pair.cross_attention_cache
    return [[tensor for layer in each.layers for tensor in (layer.keys, layer.values)] for each in caches]


def test_one_order_after_another(both):
    """The same tensor with other numbers; one layer alone; after a change in place."""
    both.step(TOKENS)
    order = torch.tensor([0, 1])
    for numbers in ([0, 1], [1, 0], [1, 1]):
        order.copy_(torch.tensor(numbers))
        for kept in both.caches:
            kept.reorder_cache(order)
        both.same_values()
    for kept in both.caches:
        kept.self_attention_cache.layers[1].reorder_cache(torch.tensor([1, 0]))
        kept.self_attention_cache.layers[0].keys.mul_(2)
        kept.self_attention_cache.layers[0].reorder_cache(torch.tensor([1, 0]))
    both.same_values()
    for kept in both.caches:
        kept.self_attention_cache.reorder_cache(torch.tensor([1, 0]))
    both.same_values()


def test_a_copied_cache_is_transformers_own(both):
    both.step(TOKENS)
    for copied in (copy.deepcopy(both.caches[1]), pickle.loads(pickle.dumps(both.caches[1]))):
        for each in (copied.self_attention_cache, copied.cross_attention_cache):
            assert {type(layer) for layer in each.layers} == {transformers.cache_utils.DynamicLayer}
