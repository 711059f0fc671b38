"""What single tasks need of their own: small classes that stand in front of transformers' class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers.pipelines import FeatureExtractionPipeline, ImageFeatureExtractionPipeline

from hfaccel.pipelines.nested import untracked


class FeatureExtraction(FeatureExtractionPipeline):  # type: ignore[misc]
    """Features of a text's own tokens: a result does not depend on the texts that share its batch.

    transformers appends a row for each token of padding to the shorter texts of a batch. Those rows have
    no meaning; here they are left out, as transformers does with `batch_size=1`.
    """

    def hfaccel_own(self: Any, output: Any, length: int, longest: int) -> Any:
        """One row of a batch's output, cut from `longest` tokens to its own `length`."""
        if length == longest or not isinstance(output, Mapping):
            return output
        name, features = next(iter(output.items()))
        if torch.is_tensor(features) and features.ndim > 2 and features.shape[1] == longest:
            left = self.tokenizer.padding_side == "left"
            output[name] = features[:, longest - length :] if left else features[:, :length]  # type: ignore[index]
        return output

    def postprocess(self, *arguments: Any, **settings: Any) -> Any:
        return _light(super().postprocess(*arguments, **settings))


class ImageFeatureExtraction(ImageFeatureExtractionPipeline):  # type: ignore[misc]
    """The same lists, of images."""

    def postprocess(self, *arguments: Any, **settings: Any) -> Any:
        return _light(super().postprocess(*arguments, **settings))


def _light(result: Any) -> Any:
    return untracked(result) if isinstance(result, list) else result


# transformers' class -> the class in front of it
IN_FRONT: dict[type, type] = {
    FeatureExtractionPipeline: FeatureExtraction,
    ImageFeatureExtractionPipeline: ImageFeatureExtraction,
}

# transformers' class -> why its own loop runs
OWN_LOOP = {
    "MaskGenerationPipeline": "its preprocessing runs the model",
}
