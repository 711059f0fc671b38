"""Whose tests are run: folders of transformers' tests/models, files of sentence-transformers' tests.

For camembert and xlm_roberta there are but slow tests of trained weights: their classes are roberta's.
"""

TYPES = (
    *("bert", "roberta", "distilbert", "electra", "mpnet", "albert"),
    *("deberta", "deberta_v2", "modernbert", "roformer", "longformer", "big_bird"),
    *("bart", "t5", "whisper"),
    *("gpt2", "opt", "gpt_neox", "llama", "mistral", "qwen2", "phi", "bloom"),
    *("vit", "deit", "dinov2", "beit", "swin", "convnext", "resnet"),
    *("clip", "siglip", "blip", "wav2vec2", "hubert", "layoutlm", "layoutlmv3", "lilt"),
)

SENTENCE_TRANSFORMERS = (
    "sentence_transformer/test_model.py",
    "sentence_transformer/test_custom_models.py",
    "sentence_transformer/test_compute_embeddings.py",
    "sentence_transformer/test_multi_process.py",
    "sentence_transformer/test_trainer.py",
    "sentence_transformer/evaluation",
    "sentence_transformer/losses",
    "sentence_transformer/modules",
    "cross_encoder/test_model.py",
    "cross_encoder/test_multi_process.py",
    "cross_encoder/losses",
    "sparse_encoder/test_model.py",
    "sparse_encoder/losses",
    "sparse_encoder/modules",
    "multi_vector_encoder/test_model.py",
    "base",
    "util",
)
