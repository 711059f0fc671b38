"""Where padding counts it is computed: tokens under the mask that are no padding, frames, answers."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest
import torch
import transformers
from conftest import at_once, make_bert
from encoders import SOUND, TEXT, inputs, make, random_vectors

import hfaccel
from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import FusedLayer

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

WIDE = {**SOUND, "num_conv_pos_embeddings": 16}
CTC = ["Wav2Vec2", "Hubert", "Data2VecAudio", "SEW", "UniSpeech", "UniSpeechSat", "WavLM"]


def fused(model):
    return [module for module in model.modules() if isinstance(module, FusedLayer)]


def reasons(model):
    return " ".join(outcome.reason for outcome in hfaccel.report(model).outcomes)


def made(kind, **sizes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('Model')}Config")
    return random_vectors(getattr(transformers, kind)(config(**sizes)))


def results(model, given):
    with torch.no_grad():
        return torch.cat([each.flatten() for each in model(**given).values() if torch.is_tensor(each)])


@pytest.mark.parametrize("kind", CTC)
def test_the_frames_of_a_padded_batch_decode_as_in_stock(kind):
    """`processor.batch_decode(model(**batch).logits.argmax(-1))` decodes all of them."""
    stock, given = made(f"{kind}ForCTC", **WIDE), inputs("wav2vec2")
    fast = hfaccel.optimize(copy.deepcopy(stock))
    with torch.inference_mode():
        expected, got = (model(**given).logits for model in (stock, fast))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert bool(fused(fast)) == (kind != "WavLM") and not hfaccel.report(fast).stock_calls


@pytest.mark.parametrize(
    "kind", ["Wav2Vec2Model", "Wav2Vec2ForAudioFrameClassification", "Wav2Vec2ForXVector"]
)
def test_frames_are_computed_whoever_reads_them(kind):
    """Adapters that make one frame of several read some behind the last."""
    settings = dict(add_adapter=True, num_adapter_layers=2) if kind == "Wav2Vec2Model" else {}
    settings |= dict(tdnn_dim=[64] * 3, tdnn_kernel=[3, 3, 1], tdnn_dilation=[1, 2, 1], xvector_output_dim=64)
    stock, given = made(kind, **WIDE, **settings), inputs("wav2vec2")
    fast = hfaccel.optimize(copy.deepcopy(stock))
    torch.testing.assert_close(results(fast, given), results(stock, given), rtol=0, atol=1e-4)
    assert "its results have other positions than its mask" in reasons(fast)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "DistilBert"])
def test_answers_are_compared_at_every_position(kind):
    sizes = (
        TEXT if kind != "DistilBert" else dict(vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128)
    )
    stock = made(f"{kind}ForQuestionAnswering", **sizes)
    given = inputs({"Bert": "BERT", "Roberta": "RoBERTa"}.get(kind, "DistilBERT"))
    fast = hfaccel.optimize(copy.deepcopy(stock))
    torch.testing.assert_close(results(fast, given), results(stock, given), rtol=0, atol=1e-4)
    assert fused(fast) and "answers are sought at every position" in reasons(fast)


def query(model, way):
    """Ids under the mask that are no padding, or of which nobody can tell."""
    ids = torch.randint(5, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 7:] = 0
    ids[0, 7:] = model.config.pad_token_id
    ids[1, 7:] = 103
    if way == "embeddings":
        return {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "attention_mask": mask}
    if way == "four dimensions":
        return {"input_ids": ids, "attention_mask": mask[:, None, None].expand(2, 1, 12, 12).bool()}
    return {"input_ids": ids, "attention_mask": mask}


TEXTS = ["BERT", "RoBERTa", "DistilBERT", "ModernBERT", "MPNet", "NomicBERT", "T5", "DeBERTa-v2", "BART"]


UNKNOWN = [(name, way) for name in ("BERT", "RoBERTa") for way in ("embeddings", "four dimensions")]


@pytest.mark.parametrize(("name", "way"), [*((name, "ids") for name in TEXTS), *UNKNOWN])
def test_tokens_under_the_mask_that_are_no_padding_are_computed(name, way):
    """ColBERT's queries are filled up with [MASK], which no token sees and everybody scores."""
    stock = make(name)
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), query(stock, way)
    expected = results(stock, given)
    torch.testing.assert_close(results(fast, given), expected, rtol=0, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(
            fast.forward(**given)[0].flatten(), expected[: given["attention_mask"].shape[0] * 12 * 64]
        )


@pytest.mark.parametrize("name", TEXTS)
def test_padding_is_left_out_where_it_is_the_padding_token(name):
    fast, given = hfaccel.optimize(make(name)), inputs(name)
    with torch.inference_mode():
        assert not fast(**given)[0][given["attention_mask"] == 0].any()
        query_first = fast(**query(fast, "ids"))[0]
        assert query_first[1, 7:].any(), "computed"
        assert not fast(**given)[0][given["attention_mask"] == 0].any()


@pytest.mark.parametrize("positional", [False, True])
def test_a_mask_by_its_place(positional):
    stock = make("BERT")
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), query(stock, "ids")
    with torch.inference_mode():
        expected, got = (
            (model(*given.values()) if positional else model(**given))[0] for model in (stock, fast)
        )
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_model_without_a_padding_token_computes_all(batch):
    stock = make_bert(pad_token_id=None)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    torch.testing.assert_close(results(fast, batch), results(stock, batch), rtol=0, atol=1e-4)
    assert "it has no pad_token_id" in reasons(fast)


def test_a_head_around_a_model_gets_what_it_reads(batch):
    stock = made("BertForMaskedLM", **TEXT)
    fast, given = hfaccel.optimize(copy.deepcopy(stock)), query(stock, "ids")
    torch.testing.assert_close(results(fast, given), results(stock, given), rtol=0, atol=1e-4)


def test_threads_have_their_own(batch):
    stock = make("BERT")
    fast, of_query, of_texts = hfaccel.optimize(copy.deepcopy(stock)), query(stock, "ids"), inputs("BERT")
    expected = results(stock, of_query)

    def work(number):
        for _ in range(20):
            if number % 2:
                torch.testing.assert_close(results(fast, of_query), expected, rtol=0, atol=1e-4)
            else:
                with torch.inference_mode():
                    assert not fast(**of_texts)[0][of_texts["attention_mask"] == 0].any()

    at_once(4, work)


@pytest.mark.parametrize("name", ["BERT", "T5", "wav2vec2"])
def test_copies_pickles_and_restored_models(name):
    stock = make(name)
    fast = hfaccel.optimize(copy.deepcopy(stock))
    given = inputs(name) if name == "wav2vec2" else query(stock, "ids")
    pickled = [] if name == "wav2vec2" else [pickle.loads(pickle.dumps(fast))]  # parametrized modules refuse
    for each in (copy.deepcopy(fast), *pickled, fast):
        torch.testing.assert_close(results(each, given), results(stock, given), rtol=0, atol=1e-4)
        assert type(each).__name__ == type(stock).__name__
        assert inspect.signature(each.forward) == inspect.signature(stock.forward)
    assert type(hfaccel.restore(fast)) is type(stock)


def padded(model):
    return hfaccel.report(model).padded_calls


def test_calls_that_compute_padding_are_counted_with_the_reason():
    stock, given = made("BertForQuestionAnswering", **TEXT), inputs("BERT")
    whole = inputs("BERT", side="none")
    fast = hfaccel.optimize(stock)
    fast(**given)
    assert padded(fast) == {}  # with gradients the whole model takes its own path, as the other count says
    for each in (given, given, whole, whole | {"attention_mask": torch.ones_like(whole["input_ids"])}):
        results(fast, each)
    assert padded(fast) == {"answers are sought at every position": 2}
    assert "answers are sought at every position" in str(hfaccel.report(fast))
    assert padded(copy.deepcopy(fast)) == {}
    bert = hfaccel.optimize(make("BERT"))
    with torch.inference_mode():
        bert(**given)
        assert padded(bert) == {}
        bert(given["input_ids"].masked_fill(given["attention_mask"] == 0, 7), given["attention_mask"])
    assert list(padded(bert).values()) == [1]


@pytest.mark.parametrize("kind", ["BertForQuestionAnswering", "Wav2Vec2ForCTC"])
def test_who_asks_for_it_has_padding_left_out_where_it_would_be_computed(kind):
    sizes, name = (TEXT, "BERT") if kind.startswith("Bert") else (WIDE, "wav2vec2")
    stock, given = made(kind, **sizes), inputs(name)
    fast = hfaccel.optimize(copy.deepcopy(stock), unpad=True)
    copies = [copy.deepcopy(fast)]
    if name == "BERT":  # torch pickles no parametrizations, which the other has
        copies.append(pickle.loads(pickle.dumps(fast)))
    for model in (fast, *copies):
        with torch.inference_mode():
            expected, got = (
                each(**given, output_hidden_states=True).hidden_states[-1] for each in (stock, model)
            )
        real = given["attention_mask"].bool()
        if real.shape != got.shape[:2]:
            lengths = stock._get_feat_extract_output_lengths(given["attention_mask"].sum(-1))
            real = torch.arange(got.shape[1])[None] < lengths[:, None]
        torch.testing.assert_close(got[real], expected[real], rtol=0, atol=1e-4)
        assert expected[~real].abs().max() > 0.1 and not got[~real].any()
        assert padded(model) == {}
    assert "as asked for by unpad=True" in reasons(fast)


def mean_of_keys(module, args, result):
    """A hook after attention's probabilities: padding is seen as all other tokens are."""
    return torch.full_like(result, 1 / result.shape[-1])


class OwnLayer(torch.nn.Module):
    """Put in a layer's place, it mixes all positions, whatever the mask says."""

    def forward(self, hidden, *args, **kwargs):
        return (hidden + hidden.mean(1, keepdim=True),)


@pytest.mark.parametrize("change", ["hook", "layer"])
def test_what_a_program_puts_into_a_model_is_given_what_layers_compute_at_padding(change):
    stock, given = made("MPNetModel", **TEXT), inputs("BERT")
    real = given["attention_mask"].bool()
    given["input_ids"][~real] = stock.config.pad_token_id
    fast = hfaccel.optimize(copy.deepcopy(stock))
    results(fast, given)
    assert padded(fast) == {}
    for model in (stock, fast):
        if change == "hook":
            model.encoder.layer[1].attention.attn.dropout.register_forward_hook(mean_of_keys)
        else:
            model.encoder.layer[1] = OwnLayer()
    for model in (fast, copy.deepcopy(fast)):
        with torch.inference_mode():
            expected, got = (each(**given)[0][real] for each in (stock, model))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    assert [*padded(fast)] == ["a submodule has a hook" if change == "hook" else "a layer was replaced"]
