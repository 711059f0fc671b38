"""Which norms of transformers are recognised, and with what numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.olmo.modeling_olmo import OlmoLayerNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from hfaccel.engine.norms import NormKind, epsilon, norm_kind, norm_weight

KINDS = [
    (nn.LayerNorm(8), NormKind.LAYER),
    (nn.Identity(), NormKind.NONE),
    (LlamaRMSNorm(8), NormKind.RMS),
    (T5LayerNorm(8), NormKind.RMS),
    (GemmaRMSNorm(8), NormKind.RMS_ABOVE_ONE),
    (CohereLayerNorm(8), NormKind.LAYER),
    (OlmoLayerNorm(8), NormKind.LAYER),
    (NemotronLayerNorm1P(8), NormKind.LAYER_ABOVE_ONE),
    (nn.Linear(8, 8), None),
    (nn.Embedding(8, 8), None),
    (nn.Dropout(), None),
]


class Other(nn.Module):
    """Has the parts of a norm, and is none."""

    def __init__(self, forward):
        super().__init__()
        self.weight, self.eps, self.computes = nn.Parameter(torch.ones(8)), 1e-5, forward

    def forward(self, rows):
        return self.computes(rows, self.weight)


@pytest.mark.parametrize(("norm", "kind"), KINDS, ids=lambda value: type(value).__name__)
def test_kinds(norm, kind):
    assert norm_kind(norm) is kind


def test_what_only_looks_like_a_norm():
    assert norm_kind(Other(lambda rows, weight: rows * weight)) is None


def test_what_cannot_be_called_is_no_norm():
    class Failing(Other):
        pass

    assert norm_kind(Failing(lambda rows, weight: rows @ weight[:3])) is None


def test_an_epsilon_that_stands_in_the_code():
    assert epsilon(OlmoLayerNorm(64)) == 1e-5
    assert epsilon(LlamaRMSNorm(8, eps=1e-3)) == 1e-3


def test_asking_leaves_the_norm_as_it_was():
    norm = GemmaRMSNorm(8)
    before, names = norm.weight, set(vars(norm))
    norm_kind(norm)
    assert norm.weight is before
    assert set(vars(norm)) == names
    torch.testing.assert_close(norm_weight(norm), torch.ones(8))
