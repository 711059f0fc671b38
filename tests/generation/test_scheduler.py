"""Continuous batching makes of each request what `generate` makes of it alone, whatever the others do."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from models import CAUSAL, LIMIT, VOCABULARY, optimized, stock

from hfaccel.engine.kernels import kernels_problem
from hfaccel.engine.layers.layer import run_stock
from hfaccel.errors import ModelError
from hfaccel.generation.lanes import OwnLanes, SlotLanes, make_lanes
from hfaccel.generation.request import Request
from hfaccel.generation.scheduler import Scheduler
from hfaccel.generation.settings import Settings

if kernels_problem():
    pytest.skip(kernels_problem(), allow_module_level=True)
pytestmark = pytest.mark.usefixtures("one_thread")
END = 2
# All layers run in the kernels: windows, learned positions, eager attention, joint projections.
TOGETHER = [
    "Llama",
    "Qwen2",
    "Qwen2, window",
    "Mistral, window",
    "Gemma3",
    "GPT-2",
    "GPT-J",
    "GPT-NeoX",
    "OPT",
]
# They keep their own forward: alibi, experts, convolutions.
ALONE = ["BLOOM", "DeepSeek-V3", "LFM2"]


class Told:
    """What a request was told."""

    def __init__(self):
        self.tokens, self.end, self.reused = [], None, None

    def started(self, reused):
        self.reused = reused

    def token(self, choice):
        assert self.end is None
        self.tokens.append(choice.token)

    def finished(self, reason):
        assert self.end is None
        self.end = reason

    failed = finished


def scheduler(model, slots=3, chunk=16, **settings):
    return Scheduler(model, make_lanes(model, slots, LIMIT), chunk, **settings)


def ask(scheduler, ids, new=8, **settings):
    told = Told()
    request = Request([*ids], Settings(max_new_tokens=new, eos=frozenset([END]), **settings), told)
    scheduler.add(request)
    return request, told


def run(scheduler, most=1000):
    for _ in range(most):
        if scheduler.is_idle:
            return
        scheduler.step()
    raise AssertionError("the scheduler does not come to an end")


def alone(name, ids, new=8, **settings):
    given = dict(max_new_tokens=new, do_sample=False, eos_token_id=END, **settings)
    return stock(name).generate(torch.tensor([ids]), **given)[0, len(ids) :].tolist()


def tokens(count, seed=0):
    return [random.Random(seed).randrange(5, VOCABULARY) for _ in range(count)]


def torture(name, seed, **settings):
    """Random arrivals, lengths, shared beginnings and cancellations."""
    chance, made = random.Random(seed), scheduler(optimized(name), **settings)
    beginning, asked = tokens(14, seed), []
    for number in range(9):
        ids = beginning[: chance.choice([0, 9, 14])] + tokens(chance.randint(1, 25), number)
        new = chance.randint(1, 20)
        asked.append((ids, new, *ask(made, ids, new)))
        for _ in range(chance.choice([0, 0, 1, 4])):
            made.step()
        if chance.random() < 0.3:
            chance.choice(asked)[2].cancelled = True
    run(made)
    return made, asked


@pytest.mark.parametrize("name", [*TOGETHER, *ALONE])
def test_as_each_alone(name):
    made, asked = torture(name, seed=TOGETHER.index(name) if name in TOGETHER else 3)
    assert bool(made.lanes.reason) == (name in ALONE)
    for ids, new, request, told in asked:
        expected = alone(name, ids, new)
        if request.cancelled:
            assert told.tokens == expected[: len(told.tokens)]
            assert told.end in ("cancelled", "stop", "length")
        else:
            assert told.tokens == expected
            assert told.end == ("stop" if expected[-1] == END else "length")
    assert any(request.cancelled for _, _, request, _ in asked) or name != "Llama"
    assert (made.reused > 0) == (name in TOGETHER)


def test_with_and_without_reuse():
    """The same tokens; fewer are computed."""
    (with_reuse, asked), (without, again) = (torture("Qwen2", 5, reuse=each) for each in (True, False))
    assert [told.tokens for *_, told in asked] == [told.tokens for *_, told in again]
    assert without.reused == 0 < with_reuse.reused
    assert with_reuse.computed + with_reuse.reused == without.computed


def test_a_system_prompt_is_computed_once():
    """Although all requests come at once; those that share it wait for the one that computes it."""
    made, system = scheduler(optimized("Llama"), slots=4, chunk=64), tokens(24)
    asked = [ask(made, [*system, *tokens(5, number)]) for number in range(1, 5)]
    run(made)
    assert [told.reused for _, told in asked] == [0, 24, 24, 24]
    assert made.computed == 24 + 4 * 5
    for request, told in asked:
        assert told.tokens == alone("Llama", request.ids[: request.prompt])


def test_running_requests_go_on_while_a_prompt_is_computed():
    """A long prompt comes in chunks; between two of them each running request gets a token."""
    made = scheduler(optimized("Llama"), chunk=8)
    _, fluent = ask(made, tokens(4), new=30)
    made.step()
    ask(made, tokens(40, 1), new=2)
    for _ in range(5):
        before = len(fluent.tokens)
        made.step()
        assert len(fluent.tokens) == before + 1


def test_a_decoding_step_is_one_call(monkeypatch):
    made, calls = scheduler(optimized("Llama"), reuse=False), []
    for number in range(3):
        ask(made, tokens(4, number), new=20)
    while any(request.due > 1 for request in made.running) or made.waiting:
        made.step()
    call = SlotLanes._call
    monkeypatch.setattr(SlotLanes, "_call", lambda self, feeds: calls.append(len(feeds)) or call(self, feeds))
    made.step()
    assert calls == [3]


def test_a_failing_request_fails_alone():
    """Its settings ask for what the model's numbers do not give."""
    made = scheduler(optimized("Llama"))
    bad, told = ask(made, tokens(5))
    _, good = ask(made, tokens(6, 1))

    def fail(ids, logits):
        raise ArithmeticError("no such token")

    bad.chooser.choose = fail
    bad.chooser._processors.append(fail)
    run(made)
    assert isinstance(told.end, ArithmeticError)
    assert good.tokens == alone("Llama", tokens(6, 1))


@pytest.mark.parametrize("name", ["Llama", "DeepSeek-V3"])
def test_an_error_of_the_model_reaches_the_requests_that_cause_it(name):
    model = copy.deepcopy(optimized(name))
    made = scheduler(model, reuse=False)
    _, bad = ask(made, [7, 8, 9])
    _, good = ask(made, tokens(6, 1))
    model.get_input_embeddings().register_forward_pre_hook(_refuse_eight)
    run(made)
    assert isinstance(bad.end, ArithmeticError)
    assert good.tokens == alone(name, tokens(6, 1))
    _, later = ask(made, tokens(7, 2))  # the slot is free again
    run(made)
    assert later.tokens == alone(name, tokens(7, 2))


def _refuse_eight(module, given):
    if 8 in given[0]:
        raise ArithmeticError("eight is refused")


def test_a_layer_that_leaves_the_kernels():
    """Its tokens are computed again, by the model's own forward."""
    model = copy.deepcopy(optimized("Llama"))
    made = scheduler(model)
    asked = [ask(made, tokens(9, number), new=12) for number in range(3)]
    for _ in range(4):
        made.step()
    assert made.lanes.reason == ""
    hook = model.model.layers[0].self_attn.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="hook"):
        run(made)
    hook.remove()
    assert isinstance(made.lanes, OwnLanes)
    assert "runs its own forward" in made.lanes.reason
    for request, told in asked:
        assert told.tokens == alone("Llama", request.ids[: request.prompt], 12)


def test_layers_that_are_faster_by_themselves():
    """However few or many rows that was measured with: their own forward cannot compute with slots."""
    model = copy.deepcopy(optimized("Llama"))
    for layer in model.model.layers:
        run_stock(layer, ("few", "some", "many"))
    made = scheduler(model)
    assert made.lanes.reason == ""
    _, told = ask(made, tokens(20))
    run(made)
    assert told.tokens == alone("Llama", tokens(20))


def test_training_mode():
    model = copy.deepcopy(optimized("Llama"))
    made = scheduler(model)
    _, told = ask(made, tokens(5))
    model.train()
    made.step()
    assert isinstance(told.end, ModelError)
    model.eval()
    _, told = ask(made, tokens(5))
    run(made)
    assert told.tokens == alone("Llama", tokens(5))


@pytest.mark.parametrize("settings", [{"repetition_penalty": 1.7}, {"min_new_tokens": 6}])
def test_greedy_with_processors(settings):
    """As `generate` with the same settings."""
    made = scheduler(optimized("Llama"))
    asked = [ask(made, tokens(6, number), **settings) for number in range(12)]
    run(made)
    for request, told in asked:
        assert told.tokens == alone("Llama", request.ids[: request.prompt], **settings)
    assert any(told.tokens != alone("Llama", each.ids[: each.prompt]) for each, told in asked) or (
        "min_new_tokens" in settings
    )


def test_sampling():
    """A seed gives the same tokens, whoever else is there; and those of the filtered distribution only."""
    made = scheduler(optimized("Llama"))
    drawn = dict(do_sample=True, temperature=1.3, top_k=12, top_p=0.95, min_p=0.01)
    asked = [ask(made, tokens(6), new=12, seed=seed, **drawn)[1] for seed in (1, 2, 1, None, None)]
    run(made)
    one, two, again, *without = [tuple(told.tokens) for told in asked]
    assert one == again != two
    assert len({one, two, *without}) == 4
    likeliest = ask(made, tokens(6), do_sample=True, top_k=1)[1]
    run(made)
    assert likeliest.tokens == alone("Llama", tokens(6))


def test_models_that_generate_and_their_reasons():
    """Every decoder of the list is served, those without a reason together."""
    reasons = {name: scheduler(optimized(name)).lanes.reason for name in ("Llama", "MPT", "DeepSeek-V3")}
    assert reasons["Llama"] == ""
    assert reasons["MPT"] == "the model's forward takes no position_ids"
    assert "layer 0 runs its own forward" in reasons["DeepSeek-V3"]
    assert "only the kernels" in scheduler(stock("Llama")).lanes.reason
    assert set(reasons) <= set(CAUSAL)


@pytest.mark.parametrize("make", [stock, optimized])
def test_positions_are_those_of_generate(make):
    """They begin at 0. RoBERTa itself would begin behind the number of the padding token."""
    made = scheduler(make("RoBERTa"))
    assert bool(made.lanes.reason) is (make is stock)
    asked = [ask(made, tokens(size, size))[1] for size in (3, 7)]
    run(made)
    assert [told.tokens for told in asked] == [alone("RoBERTa", tokens(size, size)) for size in (3, 7)]
