"""Where requests are computed: in slots of one memory, all in one call; or each with a cache of its own, one
after another, where a model's layers do not run in the kernels."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from hfaccel.engine.calls.regimes import kernels_needed
from hfaccel.engine.layers.slots import Piece, Slots, SlotsRefused
from hfaccel.engine.models.token_path import VARYING
from hfaccel.upstream.of_transformers import cache_classes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest distance of a trial's logits from the model's own, as a share of their length: rounding in bfloat16
# stays far below, tokens that see others than their own are far above.
TOLERANCE = 0.05
TRIAL = tuple(range(3, 15))  # tokens


class Feed(NamedTuple):
    """Tokens that a call computes for one request."""

    slot: int
    past: int  # tokens of the request that were computed before
    ids: Sequence[int]
    wanted: bool = True  # the logits of the last


class Computed(NamedTuple):
    logits: torch.Tensor  # (feeds that wanted some and did not fail, vocabulary), in their order
    errors: Mapping[int, Exception]  # by the place of the feed


class Lanes(Protocol):
    count: int
    reason: str  # why requests are computed one after another; "" where they are computed together
    reuses: bool  # beginnings can be copied

    def compute(self, feeds: Sequence[Feed]) -> Computed: ...
    def copy(self, source: int, target: int, tokens: int) -> None: ...
    def release(self, slot: int) -> None: ...


class SlotLanes:
    """All requests in one call."""

    reason, reuses = "", True

    def __init__(self, model: PreTrainedModel, count: int, tokens: int) -> None:
        self.count, self._model = count, model
        self.slots = Slots(count, tokens)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    def compute(self, feeds: Sequence[Feed]) -> Computed:
        try:
            return Computed(self._call(feeds), {})
        except SlotsRefused:
            raise
        except Exception as error:  # noqa: BLE001 - raised where the request was made
            if len(feeds) == 1:
                return Computed(torch.empty(0, 1), {0: error})
        return _joined([self.compute([feed]) for feed in feeds])  # to find out whose error it is

    def copy(self, source: int, target: int, tokens: int) -> None:
        self.slots.copy(source, target, tokens)

    def release(self, slot: int) -> None:
        """What the slot holds may be reused."""

    @torch.inference_mode()
    def _call(self, feeds: Sequence[Feed]) -> torch.Tensor:
        positions = self.slots.begin([Piece(feed.slot, feed.past, len(feed.ids)) for feed in feeds])
        given = {
            "input_ids": torch.tensor([[token for feed in feeds for token in feed.ids]]),
            "attention_mask": self.slots.mask,
            "position_ids": positions,
            "past_key_values": self.slots,
            "use_cache": True,
        }
        with kernels_needed():
            return self._logits(given, _ends(feeds))

    def _logits(self, given: Mapping[str, object], kept: list[int]) -> torch.Tensor:
        if not kept:  # without the output layer, the largest of a small model
            self._model.base_model(**given)
            return torch.empty(0, 1)
        more = {"logits_to_keep": torch.tensor(kept)} if self._keeps else {}
        logits: torch.Tensor = self._model(**given, **more).logits[0]
        return logits if self._keeps else logits[kept]


def _ends(feeds: Sequence[Feed]) -> list[int]:
    """The rows of a call of which logits are wanted."""
    ends = accumulate(len(feed.ids) for feed in feeds)
    return [end - 1 for feed, end in zip(feeds, ends, strict=True) if feed.wanted]


class OwnLanes:
    """Each request alone, with a cache of transformers' own."""

    reuses = False

    def __init__(self, model: PreTrainedModel, count: int, reason: str) -> None:
        self.count, self.reason, self._model = count, reason, model
        self._placed = takes_positions(model)
        self._caches: dict[int, Any] = {}

    def compute(self, feeds: Sequence[Feed]) -> Computed:
        return _joined([self._alone(feed) for feed in feeds])

    def copy(self, source: int, target: int, tokens: int) -> None:
        raise NotImplementedError("caches of transformers are not copied")

    def release(self, slot: int) -> None:
        self._caches.pop(slot, None)

    def _alone(self, feed: Feed) -> Computed:
        try:
            return Computed(self._call(feed)[:, -1][: 1 if feed.wanted else 0], {})
        except Exception as error:  # noqa: BLE001 - raised where the request was made
            return Computed(torch.empty(0, 1), {0: error})

    @torch.inference_mode()
    def _call(self, feed: Feed) -> torch.Tensor:
        if not feed.past:
            self._caches[feed.slot] = cache_classes()[0](config=self._model.config)
        end = feed.past + len(feed.ids)
        placed = {"position_ids": torch.arange(feed.past, end)[None]} if self._placed else {}
        logits: torch.Tensor = self._model(
            input_ids=torch.tensor([[*feed.ids]]),
            attention_mask=torch.ones(1, end, dtype=torch.long),
            past_key_values=self._caches[feed.slot],
            use_cache=True,
            **placed,
        ).logits
        return logits


def _joined(parts: Sequence[Computed]) -> Computed:
    """Of one feed each."""
    rows = [part.logits for part in parts if len(part.logits)]
    errors = {place: part.errors[0] for place, part in enumerate(parts) if part.errors}
    return Computed(torch.cat(rows) if rows else torch.empty(0, 1), errors)


def make_lanes(model: PreTrainedModel, count: int, tokens: int) -> Lanes:
    """Slots where a trial with them agrees with the model's own results."""
    reason = slots_problem(model, tokens)
    return OwnLanes(model, count, reason) if reason else SlotLanes(model, count, tokens)


class Reach(NamedTuple):
    """Up to how many tokens a text's rotary positions are its own: those of some kinds are, beyond that, the
    positions of the longest text of a call."""

    tokens: float = math.inf
    kind: str = ""

    def problem(self, tokens: int) -> str:
        """Why texts of so many tokens cannot be computed in one call; "" where they can."""
        if tokens <= self.tokens:
            return ""
        return f"rotary positions depend on the longest text of a call (rope_type={self.kind!r})"


def reach_of(model: PreTrainedModel) -> Reach:
    found = [Reach()]
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        varying = VARYING.intersection(kinds.values() if isinstance(kinds, Mapping) else (kinds,))
        if varying:
            found.append(Reach(_unchanged_up_to(module), min(varying)))
    return min(found)


def _unchanged_up_to(module: Any) -> int:
    """How many tokens change no rotary position."""
    said = [getattr(module, "original_max_seq_len", 0)]
    given = getattr(module.config, "rope_parameters", None) or {}
    for each in (given, *(value for value in given.values() if isinstance(value, Mapping))):
        said.append(each.get("original_max_position_embeddings") or said[0])
    return int(min(said))


def takes_positions(model: PreTrainedModel) -> bool:
    """Such a model gets positions that begin at 0, as from `generate`. RoBERTa would count them otherwise."""
    return "position_ids" in inspect.signature(model.forward).parameters


def slots_problem(model: PreTrainedModel, tokens: int = 0) -> str:
    """Why the model cannot compute with slots of so many tokens; "" where it can."""
    if not takes_positions(model):
        return "the model's forward takes no position_ids"
    if problem := reach_of(model).problem(tokens):
        return problem
    lanes = SlotLanes(model, 2, len(TRIAL))
    try:
        got = _trial(lanes)
        with torch.inference_mode():
            positions = torch.arange(len(TRIAL))[None]
            expected = model(input_ids=torch.tensor([TRIAL]), position_ids=positions).logits[0]
    except Exception as error:  # noqa: BLE001 - whatever a foreign forward raises is the reason
        return str(error) if isinstance(error, SlotsRefused) else f"{type(error).__name__}: {error}"
    if lanes.slots.written != set(range(model.config.get_text_config().num_hidden_layers)):
        return f"only the layers {sorted(lanes.slots.written)} keep their tokens in the cache"
    far = (got - expected[[10, 2, 3, 11]].float()).norm() / expected.float().norm()
    return "" if far <= TOLERANCE else f"a trial with slots differed by {far:.1e} from the model's own logits"


def _trial(lanes: SlotLanes) -> torch.Tensor:
    """Two texts, of which one comes in parts: logits after 11, 3, 4 and 12 tokens."""
    lanes._call([Feed(1, 0, TRIAL[:5], wanted=False)])
    first = lanes._call([Feed(1, 5, TRIAL[5:11]), Feed(0, 0, TRIAL[:3])])
    second = lanes._call([Feed(0, 3, TRIAL[3:4]), Feed(1, 11, TRIAL[11:])])
    return torch.cat([first, second]).float()
