"""Additions to the loop for single tasks: small classes in front of transformers' classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from transformers.pipelines import (
    FeatureExtractionPipeline,
    ImageFeatureExtractionPipeline,
    Pipeline,
    TextGenerationPipeline,
)

from hfaccel.pipelines.call import Call
from hfaccel.pipelines.nested import untracked
from hfaccel.pipelines.scheduled import Scheduled
from hfaccel.replacement import PREFIX


class FeatureExtraction(Scheduled):
    """Features of a text's own tokens: a result does not depend on the texts that share its batch.

    transformers appends a row for each token of padding to the shorter texts of a batch. Those rows have
    no meaning. Here they are left out, as in transformers with `batch_size=1`.
    """

    def hfaccel_row(self, output: object, length: int, longest: int) -> object:
        """One row of a batch's output, cut from `longest` tokens to its own `length`."""
        if length == longest or not isinstance(output, Mapping):
            return output
        name, features = next(iter(output.items()))
        if torch.is_tensor(features) and features.ndim > 2 and features.shape[1] == longest:
            left = self.tokenizer.padding_side == "left"
            output[name] = features[:, longest - length :] if left else features[:, :length]  # type: ignore[index]
        return output

    def postprocess(self, *arguments: object, **settings: object) -> object:
        return _light(super().postprocess(*arguments, **settings))


class ImageFeatureExtraction(Scheduled):
    """Features of images: nested lists that the garbage collector does not visit."""

    def postprocess(self, *arguments: object, **settings: object) -> object:
        return _light(super().postprocess(*arguments, **settings))


class TextGeneration(Scheduled):
    """Lists of prompts, continued greedily: each call of the model computes a token for many of them."""

    hfaccel_continues = True

    def hfaccel_own_loop(self, inputs: object, call: Call) -> Callable[[], object] | str:
        from hfaccel.generation.lanes import slots_problem
        from hfaccel.pipelines.continuing import Continuing, state_problem

        if not isinstance(inputs, list) or len(inputs) < 2:
            return "one prompt, or a stream of them"
        if problem := state_problem(self.model):
            return problem  # before the trial below, whose verdict is kept
        kept = self.__dict__.get(FOUND)
        if kept is None or kept[0] is not self.model:
            kept = self.__dict__[FOUND] = self.model, slots_problem(self.model)
        begin = partial(Continuing, call, inputs)
        return kept[1] or begin().reason() or begin


FOUND = f"{PREFIX}found"  # attribute of a pipeline: its model, and why that cannot continue prompts together


def _light(result: object) -> object:
    return untracked(result) if isinstance(result, list) else result


# transformers' class -> the class in front of it
IN_FRONT: dict[type[Pipeline], type[Scheduled]] = {
    FeatureExtractionPipeline: FeatureExtraction,
    ImageFeatureExtractionPipeline: ImageFeatureExtraction,
    TextGenerationPipeline: TextGeneration,
}


def scheduled_for(stock: type[Pipeline]) -> type[Scheduled]:
    """The class that goes in front of this one."""
    return next((mixin for kind, mixin in IN_FRONT.items() if issubclass(stock, kind)), Scheduled)
