"""A representative part of what `make conformance` runs over every architecture of transformers."""

from __future__ import annotations

import json

import pytest
import torch
from agreement import TOLERANCE, distance, judge, tensors
from small_models import architectures, build, inputs
from table import in_child, page

from hfaccel.engine.kernels import kernels_problem

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")

# type: families of its fused layers
FUSED = {
    "albert": "ALBERT",
    "bart": "BART, BART decoder",
    "bert": "BERT",
    "bloom": "BLOOM",
    "camembert": "BERT",
    "clip": "CLIP",
    "data2vec-text": "BERT",
    "deberta-v2": "DeBERTa",
    "distilbert": "DistilBERT",
    "electra": "BERT",
    "gpt2": "GPT-2",
    "gptj": "GPT-J",
    "layoutlm": "LayoutLM",
    "llama": "Llama",
    "markuplm": "eager BERT",
    "mbart": "Whisper, Whisper decoder",
    "modernbert": "ModernBERT",
    "mpnet": "MPNet",
    "mt5": "T5 gated, T5 gated decoder",
    "nomic_bert": "NomicBERT",
    "opt": "OPT",
    "phi": "Phi",
    "qwen2": "Llama",
    "roberta": "BERT",
    "siglip": "SigLIP",
    "t5": "T5, T5 decoder",
    "umt5": "UMT5 gated, UMT5 gated decoder",
    "vit": "ViT",
    "wav2vec2": "wav2vec2",
    "whisper": "Whisper",
    "xlm-roberta": "BERT",
    "yolos": "YOLOS",
}
# others, with another computation in each
PACKED = ("convbert", "deberta", "dinov2", "esm", "fnet", "longformer")
PACKED += ("mobilebert", "roformer", "segformer", "squeezebert", "beit")
PACKED += ("openai-gpt",)
# those with convolutions: how many batch norms are folded
CONVOLVED = {"detr": 16, "levit": 4, "mobilenet_v1": 27, "mobilenet_v2": 52, "regnet": 17, "resnet": 17}


@pytest.mark.parametrize("kind", CONVOLVED)
def test_architectures_with_convolutions(kind):
    verdict = judge(kind)
    assert not verdict.problem and not verdict.not_built and not verdict.stock
    assert verdict.folded == CONVOLVED[kind]


@pytest.mark.parametrize("kind", FUSED)
def test_families_that_are_fused(kind):
    verdict = judge(kind)
    assert not verdict.problem and not verdict.not_built and not verdict.stock
    assert {name.split(" x ")[0] for name in verdict.fused} == set(FUSED[kind].split(", "))


@pytest.mark.parametrize("kind", PACKED)
def test_other_architectures(kind):
    verdict = judge(kind)
    assert not verdict.problem and not verdict.not_built
    assert not verdict.fused and verdict.packed + len(verdict.reasons) > 0


# The tools themselves: they must find what they look for


def test_a_wrong_result_is_found():
    model = build("bert")
    given = inputs(model, "left")
    with torch.inference_mode():
        right = dict(tensors(model(**given)))
        model.bert.encoder.layer[1].output.dense.bias[0] += 0.5
        wrong = dict(tensors(model(**given)))
    assert distance(right, right, given) == 0
    assert distance(wrong, right, given) > 10 * TOLERANCE["float32"]
    assert distance({}, right, given) == float("inf")
    name = next(iter(right))
    assert distance({**right, name: right[name] * float("nan")}, right, given) == float("inf")


def test_only_real_tokens_are_compared():
    given = {"attention_mask": torch.tensor([[1, 1, 0]])}
    wanted = {"x": torch.ones(1, 3, 2)}
    got = {"x": torch.tensor([[[1.0, 1.0], [1.0, 1.0], [7.0, 7.0]]])}
    assert distance(got, wanted, given) == 0
    assert distance(got, wanted, {}) > 1


def test_a_type_that_takes_too_long_is_a_row():
    row = in_child("bert", seconds=0.001)
    assert "seconds" in row["not_built"]
    assert "| bert | takes more than 0 seconds |" in page([row])


def test_the_page_has_a_row_for_each_type():
    rows = [judge("bert", precisions=("float32",)).to_dict()]
    text = page(json.loads(json.dumps(rows)))
    assert "| bert | BertForMaskedLM | 13 | BERT x 2 |" in text
    assert "1 of 1 types" in text
    assert len(architectures()) > 150
