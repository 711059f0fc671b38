"""text-generation over a list: prompts that are continued greedily go through the model together.

transformers' `_forward` decides what `generate` is asked for. It runs here with a stand-in for the model that
notes this; the scheduler makes the new tokens, and transformers' `postprocess` the results.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from hfaccel.generation.choosing import Choice
from hfaccel.generation.config import unknown
from hfaccel.generation.lanes import Reach, SlotLanes, reach_of
from hfaccel.generation.request import Request
from hfaccel.generation.scheduler import Scheduler
from hfaccel.generation.settings import Settings, ends
from hfaccel.pipelines.call import Call
from hfaccel.pipelines.parts import Failed, interrupts
from hfaccel.upstream.of_transformers import stock_generate

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOST_SLOTS = 16
KEPT = ("repetition_penalty", "min_new_tokens")  # settings of greedy decoding


class Asked(NamedTuple):
    """What `generate` was asked for."""

    ids: torch.Tensor | None
    mask: torch.Tensor | None
    settings: Mapping[str, Any]


class Recorder:
    """In the place of a pipeline's model: notes what `generate` is asked for."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.asked: Asked | None = None

    def generate(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, **settings: Any
    ) -> torch.Tensor:
        self.asked = Asked(input_ids, attention_mask, settings)
        return torch.empty(1, 0, dtype=torch.long) if input_ids is None else input_ids

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


def read_settings(asked: Asked, model: PreTrainedModel, reach: Reach) -> Settings | str:
    """The settings of this request, or why `generate` itself has to run."""
    if asked.ids is None:
        return "the prompt is empty"
    if asked.mask is not None and not bool(asked.mask.all()):
        return "the prompt has padding"
    config = _effective(asked.settings, model)
    if config.get("do_sample"):
        return "do_sample=True: tokens are drawn at random"
    if config.get("return_dict_in_generate") or (strange := unknown(config)):
        return f"{', '.join(strange) if strange else 'return_dict_in_generate'} was asked for"
    length = asked.ids.shape[1]
    new = config.get("max_new_tokens") or (config.get("max_length") or 0) - length
    if new < 1:
        return "the prompt is as long as max_length"
    eos = config.get("eos_token_id")
    if problem := reach.problem(length + new):
        return problem
    kept = {name: config[name] for name in KEPT if config.get(name) is not None}
    return Settings(max_new_tokens=new, eos=frozenset() if eos is None else ends(eos), **kept)


def _effective(settings: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """As `generate` has it: arguments, before their generation config, before the model's."""
    given = {name: value for name, value in settings.items() if name != "generation_config"}
    config = settings.get("generation_config")
    of_call = {} if config is None else {k: v for k, v in config.to_dict().items() if v is not None}
    return {**model.generation_config.to_dict(), **of_call, **given}


class Prompt:
    """One input on its way: what the model was given, and the new tokens, or the result in their place."""

    def __init__(self) -> None:
        self.output: dict[str, Any] = {}
        self.request: Request | None = None
        self.done: object = None  # an output, or Failed

    def started(self, reused: int) -> None:
        """Nobody asks."""

    def token(self, choice: Choice) -> None:
        """The request keeps them."""

    def finished(self, reason: str) -> None:
        assert self.request is not None
        self.output["generated_sequence"] = torch.tensor([[self.request.ids]])
        self.done = self.output

    def failed(self, error: BaseException) -> None:
        self.done = Failed(error)


class Continuing(Iterator[object]):
    """Results in the order of the inputs. An input's exception is raised in place of its result."""

    def __init__(self, call: Call, inputs: Sequence[object]) -> None:
        self._call, self._inputs = call, inputs
        self._recorder = Recorder(call.pipe.model)
        self._reach = reach_of(call.pipe.model)
        self._shadow = copy.copy(call.pipe)
        self._shadow.model = self._recorder
        self._prompts: list[Prompt] = []
        self._scheduler: Scheduler | None = None
        self._given = 0

    def reason(self) -> str:
        """Why transformers' loop has to run, judged by the first input; "" if this one may."""
        prompt = Prompt()
        self._begin(prompt, self._inputs[0])
        return prompt.done if isinstance(prompt.done, str) else ""

    def __next__(self) -> object:
        if self._scheduler is None:
            self._scheduler = self._started()
        if self._given == len(self._prompts):
            raise StopIteration
        prompt = self._prompts[self._given]
        while prompt.done is None:
            self._scheduler.step()
        self._given += 1
        if isinstance(prompt.done, str):  # generate itself has to run
            return self._alone(self._inputs[self._given - 1])
        if isinstance(prompt.done, Failed):
            raise prompt.done.error
        return self._call.pipe.postprocess(prompt.done, **self._call.postprocess)

    def _started(self) -> Scheduler:
        for given in self._inputs:
            self._prompts.append(Prompt())
            self._begin(self._prompts[-1], given)
        requests = [prompt.request for prompt in self._prompts if prompt.request is not None]
        most = max((len(each.ids) + each.settings.max_new_tokens for each in requests), default=1)
        model = self._call.pipe.model
        scheduler = Scheduler(model, SlotLanes(model, min(MOST_SLOTS, max(1, len(requests))), most))
        for request in requests:
            scheduler.add(request)
        return scheduler

    def _begin(self, prompt: Prompt, given: object) -> None:
        """Prepare an input up to the call of `generate`."""
        try:
            made = self._shadow.preprocess(given, **self._call.preprocess)
            prompt.output = self._shadow.forward(made, **self._call.forward)
            asked = self._recorder.asked
            assert asked is not None
            settings = read_settings(asked, self._call.pipe.model, self._reach)
        except BaseException as error:  # raised when it is this input's turn
            if interrupts(error):
                raise
            prompt.done = Failed(error)
            return
        if isinstance(settings, str):
            prompt.done = settings
        else:
            assert asked.ids is not None
            prompt.request = Request(asked.ids[0].tolist(), settings, prompt)

    def _alone(self, given: object) -> object:
        pipe, call = self._call.pipe, self._call
        made = pipe.preprocess(given, **call.preprocess)
        return pipe.postprocess(pipe.forward(made, **call.forward), **call.postprocess)


def state_problem(model: Any) -> str:
    """Why `generate` itself has to run as the model is now; "" where it need not."""
    if model.training:
        return "the model is in training mode"
    if "generate" in vars(model) or type(model).generate is not stock_generate():
        return "generate() is not transformers' own"
    return ""
