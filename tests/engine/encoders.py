"""Small encoders of every family that is fused, with inputs; made once, copied for each test."""

from __future__ import annotations

import copy
from functools import cache

import torch

TEXT = dict(vocab_size=500, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
IMAGE = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=48)
SOUND = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, vocab_size=32)
SOUND |= dict(
    conv_dim=[64] * 3, conv_kernel=[10, 3, 3], conv_stride=[5, 2, 2], num_conv_pos_embedding_groups=4
)
BART = dict(vocab_size=500, d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128)
BART |= dict(decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=128, max_position_embeddings=64)
WHISPER = dict(d_model=64, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=128, decoder_layers=1)
WHISPER |= dict(decoder_attention_heads=4, decoder_ffn_dim=128, max_source_positions=30, num_mel_bins=20)
WHISPER |= dict(vocab_size=500, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)

T5 = dict(vocab_size=500, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, pad_token_id=0)
T5 |= dict(decoder_start_token_id=0, eos_token_id=1, relative_attention_max_distance=20)
GATED = dict(feed_forward_proj="gated-gelu")
DEBERTA = {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16}
DEBERTA |= dict(norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0)
DEBERTA |= dict(initializer_range=0.1)  # or distances would hardly count

# name: (class without "Model", sizes). Images and sounds need their input in inputs(), too.
SETTINGS = {
    "BERT": ("Bert", TEXT),
    "RoBERTa": ("Roberta", TEXT),
    "XLM-R": ("XLMRoberta", TEXT),
    "CamemBERT": ("Camembert", TEXT),
    "RoBERTa-PreLayerNorm": ("RobertaPreLayerNorm", TEXT),
    "ELECTRA": ("Electra", {**TEXT, "embedding_size": 32}),
    "DistilBERT": ("DistilBert", dict(vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128)),
    "ALBERT": ("Albert", {**TEXT, "embedding_size": 32}),
    "MPNet": ("MPNet", TEXT),
    "ModernBERT": ("ModernBert", {**TEXT, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}),
    "NomicBERT": ("NomicBert", TEXT),
    "T5": ("T5Encoder", T5),
    "T5, gated": ("T5Encoder", {**T5, **GATED, "d_kv": 32}),
    "mT5": ("MT5Encoder", {**T5, **GATED}),
    "UMT5": ("UMT5Encoder", T5),
    "UMT5, gated": ("UMT5Encoder", {**T5, **GATED}),
    "DeBERTa-v2": ("DebertaV2", {**DEBERTA, "share_att_key": True, "conv_kernel_size": 3}),
    "DeBERTa-v2, own keys": ("DebertaV2", DEBERTA),
    "DeBERTa-v2, c2p": ("DebertaV2", {**DEBERTA, "pos_att_type": ["c2p"], "position_buckets": -1}),
    "DeBERTa-v2, p2c": ("DebertaV2", {**DEBERTA, "pos_att_type": ["p2c"], "norm_rel_ebd": "none"}),
    "DeBERTa-v2, absolute": ("DebertaV2", {**DEBERTA, "relative_attention": False}),
    "ViT": ("ViT", {**IMAGE, "patch_size": 16}),
    "CLIP vision": ("CLIPVision", {**IMAGE, "patch_size": 16}),
    "YOLOS": ("Yolos", {**IMAGE, "image_size": [48, 48], "patch_size": 16, "num_detection_tokens": 3}),
    "Whisper": ("Whisper", WHISPER),
    "BART": ("Bart", BART),
    "wav2vec2": ("Wav2Vec2", SOUND),
    "wav2vec2, stable norm": (
        "Wav2Vec2",
        {**SOUND, "do_stable_layer_norm": True, "feat_extract_norm": "layer"},
    ),
}
IMAGES = ["ViT", "CLIP vision", "YOLOS"]
TEXTS = [name for name in SETTINGS if name not in (*IMAGES, "Whisper") and "wav2vec2" not in name]


def random_vectors(model):
    """Norms and biases of a new model are 0 and 1, which would hide that one was left out."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


@cache
def _made(name):
    import transformers

    torch.manual_seed(0)
    kind, settings = SETTINGS[name]
    config = getattr(transformers, f"{kind.removesuffix('Encoder')}Config")
    model = getattr(transformers, f"{kind}Model")(config(**settings))
    if name in ("Whisper", "BART"):
        model = model.get_encoder()
    return random_vectors(model)


def make(name):
    return copy.deepcopy(_made(name))


def inputs(name, side="right", length=17, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if name in IMAGES:
        return {"pixel_values": torch.randn(2, 3, 48, 48, generator=generator)}
    if name == "Whisper":
        return {"input_features": torch.randn(2, 20, 60, generator=generator)}
    if "wav2vec2" in name:
        mask = torch.ones(2, 1000, dtype=torch.long)
        mask[1, 600:] = 0
        sound = torch.randn(2, 1000, generator=generator)
        return {"input_values": sound * mask} | ({} if side == "none" else {"attention_mask": mask})
    ids = torch.randint(5, 500, (3, length), generator=generator)
    mask = torch.ones(3, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    mask[2, 1:] = 0
    mask = mask.flip(1) if side == "left" else mask
    if side != "none":
        ids = ids.masked_fill(mask == 0, _made(name).config.pad_token_id or 0)
    return {"input_ids": ids} | ({} if side == "none" else {"attention_mask": mask})


def run(model, given):
    with torch.inference_mode():
        return model(**given)[0]


def real(result, given):
    """(tokens, size): what is no padding; of sounds the whole of the first, which has none."""
    mask = given.get("attention_mask")
    if mask is None:
        return result.flatten(0, -2)
    return result[0] if mask.shape != result.shape[:2] else result[mask.bool()]


def cosines(got, expected):
    """(tokens,)"""
    return torch.nn.functional.cosine_similarity(got.double(), expected.double(), dim=-1)
