"""Models that begin with, or are made of, convolutions, with random weights: what vision.py measures."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from cases import PRECISIONS, median_seconds

TINY = {"num_hidden_layers": 1, "encoder_layers": 1, "decoder_layers": 1, "depths": [1, 1, 1, 1]}
# name: class, what its config differs in from the default, the attribute that is measured, shape of an input
MODELS: dict[str, tuple[str, dict[str, Any], str, tuple[int, ...]]] = {
    "vit-base": ("ViT", {}, "", (3, 224, 224)),
    "resnet-50": ("ResNet", {}, "", (3, 224, 224)),
    "convnext-tiny": ("ConvNext", {}, "", (3, 224, 224)),
    "mobilenet-v2": ("MobileNetV2", {}, "", (3, 224, 224)),
    "yolos-tiny": (
        "Yolos",
        dict(
            hidden_size=192,
            num_attention_heads=3,
            intermediate_size=768,
            image_size=[800, 1333],
            use_mid_position_embeddings=False,
        ),
        "",
        (3, 512, 864),
    ),
    "whisper-base": (
        "Whisper",
        dict(
            d_model=512,
            encoder_layers=6,
            encoder_attention_heads=8,
            encoder_ffn_dim=2048,
            decoder_layers=1,
            decoder_attention_heads=8,
        ),
        "encoder",
        (80, 3000),
    ),
    "wav2vec2-base": ("Wav2Vec2", {}, "", (5 * 16000,)),
}


def build(name: str, tiny: bool) -> torch.nn.Module:
    import transformers

    kind, settings, part, _ = MODELS[name]
    config_class = getattr(transformers, f"{kind}Config")
    known = vars(config_class())
    small = {key: value for key, value in TINY.items() if tiny and key in known}
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(config_class(**{**settings, **small})).eval()
    return getattr(model, part) if part else model


def forward(
    model: str, batch: int, optimized: str = "", threads: int = 0, tiny: bool = False, seconds: float = 0.5
) -> Callable[[], dict[str, float]]:
    """One forward of a model on random input. A sample is the median over `seconds`, of three at least.

    `optimized`: a name of cases.PRECISIONS, "" for the stock model. `threads`: 0 for one to each core."""
    if threads:
        torch.set_num_threads(threads)
    module = build(model, tiny)
    if optimized:
        import hfaccel

        options = PRECISIONS[optimized] | ({"num_threads": threads} if threads else {})
        module = hfaccel.optimize(module, **options)
    given = torch.randn(batch, *MODELS[model][3], generator=torch.Generator().manual_seed(0))

    def sample() -> dict[str, float]:
        with torch.inference_mode():
            return {"seconds": median_seconds(lambda: module(given), seconds)}

    return sample
