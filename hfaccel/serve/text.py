"""Batchers for texts, which are tokenized while the model computes, and batched by tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfaccel.errors import ModelError, UsageError, check_count
from hfaccel.serve.batcher import Batcher

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from transformers import PreTrainedTokenizerBase

POOLINGS = ("mean", "cls")


def embedder(
    tokenizer: PreTrainedTokenizerBase,
    model: Callable[..., Any],
    *,
    max_length: int | None = None,
    pooling: str = "mean",
    normalize: bool = True,
    **limits: Any,
) -> Batcher[str, torch.Tensor]:
    """A Batcher from a text to its embedding, a float32 tensor of shape (hidden size,).

    `model`: an encoder whose output has `last_hidden_state`, best from `hfaccel.optimize`. `max_length`: the
    tokens that are kept of a text, by default as many as the tokenizer allows. `pooling`: "mean" over the
    tokens, or "cls" for the first token's state. `normalize`: to length 1. `limits`: see Batcher; sizes are
    tokens.

    Nothing else may use the tokenizer before the batcher is closed. Raises UsageError for an unknown pooling
    and for a tokenizer that cannot pad, ModelError for anything but a model. A request raises UsageError for
    anything but one text.
    """
    _check_parts(tokenizer, model)
    if max_length is not None:
        check_count("max_length", max_length)
    if pooling not in POOLINGS:
        raise UsageError(f"`pooling` must be one of {', '.join(POOLINGS)}, but got {pooling!r}")

    def tokenize(text: str) -> dict[str, list[int]]:
        if not isinstance(text, str):
            raise UsageError(f"one text is expected, but got {type(text).__name__}; call it for each text")
        tokens: dict[str, list[int]] = tokenizer(text, truncation=True, max_length=max_length).data
        return tokens

    def embed(tokenized: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        import torch

        # On the right, whatever the tokenizer prefers: positions and the first token stay as they are.
        batch = tokenizer.pad(
            tokenized, padding_side="right", return_attention_mask=True, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**batch).last_hidden_state.float()
            vectors = _mean(states, batch["attention_mask"]) if pooling == "mean" else states[:, 0]
            vectors = torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors
        return list(vectors.unbind())

    return Batcher(embed, prepare=tokenize, size=_tokens, **limits)


def _check_parts(tokenizer: PreTrainedTokenizerBase, model: object) -> None:
    if not callable(tokenizer) or not hasattr(tokenizer, "pad_token"):
        raise UsageError(
            f"a tokenizer of transformers is expected, but got {type(tokenizer).__name__}; "
            "pass what AutoTokenizer.from_pretrained returned"
        )
    if not callable(model) or hasattr(model, "postprocess"):
        raise ModelError(
            f"an encoder is expected, but got {type(model).__name__}; pass what AutoModel.from_pretrained "
            "or hfaccel.optimize returned (of a pipeline: pipe.model)"
        )
    if tokenizer.pad_token is None:
        raise UsageError("batches need a `tokenizer.pad_token`, but it is None; set it, often to eos_token")


def _tokens(tokenized: dict[str, list[int]]) -> int:
    return len(tokenized["input_ids"])


def _mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean over the real tokens: (batch, length, hidden), (batch, length) -> (batch, hidden)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)
