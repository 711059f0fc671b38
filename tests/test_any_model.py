"""Property: whatever small model and whatever mask, optimize() in float32 gives what stock gives, wherever
a task reads: all that has no place in the text, and of what has one all places that the mask shows."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
import transformers
from conftest import needs_kernels
from encoders import random_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

import hfaccel
from hfaccel.engine.layers.layer import FusedLayer

pytestmark = [pytest.mark.usefixtures("one_thread"), needs_kernels]

VOCABULARY, LONGEST, PADDING = 120, 20, 1
TEXT = dict(vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4)
TEXT |= dict(intermediate_size=128, pad_token_id=PADDING, bos_token_id=0, eos_token_id=2)
DISTIL = dict(vocab_size=VOCABULARY, dim=64, n_layers=2, n_heads=4, hidden_dim=128, pad_token_id=PADDING)
T5 = dict(vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4)
T5 |= dict(pad_token_id=PADDING, decoder_start_token_id=0, eos_token_id=2)
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
SOUND = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=32)
SOUND |= dict(conv_dim=[64] * 3, conv_kernel=[10, 3, 3], conv_stride=[5, 2, 2])
SOUND |= dict(num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
SIGLIP = {**TEXT, "max_position_embeddings": 32, "projection_size": 32}

HEADS = ("Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
KINDS = {
    "Bert": (TEXT, (*HEADS, "ForMaskedLM", "ForMultipleChoice")),
    "Roberta": (TEXT, (*HEADS, "ForMaskedLM", "ForMultipleChoice")),
    "Electra": ({**TEXT, "embedding_size": 64}, (*HEADS, "ForMultipleChoice")),
    "DistilBert": (DISTIL, (*HEADS, "ForMaskedLM")),
    "Albert": ({**TEXT, "embedding_size": 64}, HEADS),
    "MPNet": (TEXT, HEADS),
    "ModernBert": ({**TEXT, "cls_token_id": 3, "sep_token_id": 4, "local_attention": 8}, HEADS),
    "NomicBert": (TEXT, ("Model", "ForSequenceClassification")),
    "DebertaV2": (DEBERTA, HEADS),
    "T5": (T5, ("EncoderModel", "ForTokenClassification")),
    "LayoutLM": (TEXT, HEADS),
    "MarkupLM": (TEXT, HEADS),
    "SiglipText": (SIGLIP, ("Model",)),
    "CLIPText": ({**SIGLIP, "eos_token_id": 5}, ("Model", "ModelWithProjection")),
}
MODELS = [(kind, head) for kind, (_, heads) in KINDS.items() for head in heads]
SOUND_HEADS = ("Model", "ForCTC", "ForSequenceClassification")
SOUNDS = [(kind, head) for kind in ("Wav2Vec2", "Hubert") for head in SOUND_HEADS]


@cache
def pair(kind, head):
    """The stock model and the optimized one."""
    torch.manual_seed(0)
    sizes = KINDS[kind][0] if kind in KINDS else SOUND
    labels = {"num_labels": 2 if head == "ForQuestionAnswering" else 3}
    config = getattr(transformers, f"{kind}Config")(**sizes, **labels)
    stock = random_vectors(getattr(transformers, f"{kind}{head}")(config))
    fast = hfaccel.optimize(copy.deepcopy(stock))
    assert any(isinstance(module, FusedLayer) for module in fast.modules())
    return stock, fast


@st.composite
def masks(draw):
    """(texts, tokens) of 0 and 1: padding behind or before, holes, none; every text has a token."""
    batch, length = draw(st.integers(1, 4)), draw(st.integers(1, LONGEST))
    form = draw(st.sampled_from(["right", "left", "holes", "none"]))
    if form == "none":
        return torch.ones(batch, length, dtype=torch.int64), form
    if form == "holes":
        rows = st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any)
        return torch.tensor([draw(rows) for _ in range(batch)]), form
    lengths = torch.tensor([draw(st.integers(1, length)) for _ in range(batch)])
    mask = (torch.arange(length) < lengths[:, None]).long()
    return (mask if form == "right" else mask.flip(1)), form


@st.composite
def texts(draw):
    mask, form = draw(masks())
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    ids = torch.randint(6, VOCABULARY, mask.shape, generator=generator)
    filled = draw(st.sampled_from(["padding", "other tokens"]))
    if filled == "padding":
        ids = ids.masked_fill(mask == 0, PADDING)
    passed = form != "none" or draw(st.booleans())
    return ids, mask, passed


def results(model, arguments):
    with torch.inference_mode():
        result = model(**arguments)
    return {name: value for name, value in result.items() if torch.is_tensor(value)}


def agree(stock, fast, arguments, shown):
    expected, got = (results(model, arguments) for model in (stock, fast))
    assert list(got) == list(expected)
    for name, value in expected.items():
        other = got[name]
        assert other.shape == value.shape
        if shown is not None and value.dim() > 2 and value.shape[:2] == shown.shape:
            value, other = value[shown], other[shown]  # of words; answers are compared everywhere
        torch.testing.assert_close(other, value, rtol=1e-4, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize(("kind", "head"), MODELS)
@settings(max_examples=12, derandomize=True)
@given(given_text=texts())
def test_texts(kind, head, given_text):
    (stock, fast), (ids, mask, passed) = pair(kind, head), given_text
    arguments = {"input_ids": ids} | ({"attention_mask": mask} if passed else {})
    if head == "ForMultipleChoice":
        arguments = {name: value[None] for name, value in arguments.items()}
    agree(stock, fast, arguments, mask.bool() if passed else None)


@pytest.mark.parametrize(("kind", "head"), SOUNDS)
@settings(max_examples=6, derandomize=True)
@given(
    lengths=st.lists(st.integers(200, 900), min_size=1, max_size=3),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_sounds(kind, head, lengths, masked, seed):
    """Every frame is read: a CTC head's are decoded one and all."""
    stock, fast = pair(kind, head)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    sound = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed)) * mask
    agree(stock, fast, {"input_values": sound} | ({"attention_mask": mask} if masked else {}), None)
