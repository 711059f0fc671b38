"""benchmarks/generation.py: who takes part, its arithmetic, table and bars. No times are taken."""

from __future__ import annotations

import pytest
import torch

import generation
import generation_bars as bars
import generation_checks as checks
import generation_engines as engines
import generation_models as models
from turns import Engines


def row(engine, decode=(0.02, 0.02, 0.02), prefill=(0.5, 0.5, 0.5), share=0.9, case="qwen2-0.5b"):
    return {
        "case": case,
        "engine": engine,
        "seconds": {"decode": list(decode), "prefill": list(prefill)},
        "ms": {"decode": decode[0] * 1e3, "prefill": prefill[0] * 1e3},
        "bytes": 988_000_000,
        "bandwidth": 40e9,
        "share": share,
        "agreement": 1.0,
        "regret": 0.0,
    }


BASE = row("eager bf16", decode=(0.08, 0.06, 0.09))


def verdicts(*rows, base="eager bf16"):
    return {told["name"]: (told["measured"], told["bar"]) for told in bars.judged(rows, base)}


# Bars


def test_a_mixture_has_no_bar_and_is_measured_when_it_is_named():
    (case,) = models.MIXTURES
    assert not bars.judged([row("hfaccel bf16", case=case), row("eager bf16", case=case)], "eager bf16")
    assert case not in generation.parse([]).models and generation.parse(["--models", case]).models == [case]


def test_of_experts_those_count_that_a_token_reads(monkeypatch):
    whole = models.CONFIGURATIONS["qwen3-moe-0.4b"]
    small = dict(hidden_size=16, moe_intermediate_size=8, vocab_size=50, num_hidden_layers=1, num_experts=8)
    monkeypatch.setitem(models.CONFIGURATIONS, "small", lambda: whole(**small, head_dim=16))
    module = models.build("small")
    dense = sum(weight.numel() for _, weight in models.matrices(module))
    assert models.count_weights(module) == dense + 4 * 3 * 16 * 8


def test_ratios_are_taken_within_a_turn():
    assert bars.ratio([4.0, 9.0, 2.0], [2.0, 3.0, 2.0]) == 2.0
    assert bars.ratio([4.0, 9.0], [2.0, 3.0]) == 2.5


def test_hfaccel_is_judged_against_eager_the_bandwidth_and_the_best_rival_of_equal_bits():
    rivals = row("llama.cpp bf16", decode=(0.03,) * 3), row("openvino bf16", decode=(0.01,) * 3)
    assert verdicts(BASE, row("hfaccel bf16"), *rivals) == {
        "qwen2-0.5b decode: hfaccel bf16 against eager bf16": (4.0, 2.5),
        "qwen2-0.5b prefill: hfaccel bf16 against eager bf16": (1.0, 1.3),
        "qwen2-0.5b share of bandwidth: hfaccel bf16": (0.9, 0.8),
        "qwen2-0.5b decode: hfaccel bf16 against openvino bf16": (0.5, 1.0),
        "qwen2-0.5b prefill: hfaccel bf16 against llama.cpp bf16": (1.0, 1.0),
    }


def test_an_engine_that_was_not_measured_counts_against_no_bar():
    absent = {"case": "qwen2-0.5b", "engine": "hfaccel bf16", "failed": "not offered by this version"}
    assert verdicts(BASE, absent, row("llama.cpp bf16")) == {}


def test_models_are_judged_one_by_one():
    other = [row(engine, case="smollm-135m") for engine in ("eager bf16", "hfaccel int8")]
    assert verdicts(BASE, *other) == {
        "smollm-135m prefill: hfaccel int8 against eager bf16": (1.0, 1.6),
    }


def test_bars_name_rows_and_cells_of_the_benchmark():
    named = {*bars.SHARE, *bars.RIVALS, *(engine for cell in bars.SPEED.values() for engine in cell)}
    named |= {rival for rivals in bars.RIVALS.values() for rival in rivals}
    assert named <= set(engines.ENGINES)
    assert set(bars.SPEED) == set(engines.CELLS)


def test_rivals_have_equal_bits():
    for engine, rivals in bars.RIVALS.items():
        assert {engines.ENGINES[rival].bits for rival in rivals} == {engines.ENGINES[engine].bits}


# Who takes part


def test_a_quantization_that_optimize_refuses_is_left_out_with_the_reason(monkeypatch):
    unknown = engines.Engine(lambda model: None, 3, "int3-imaginary")
    monkeypatch.setitem(engines.ENGINES, "hfaccel int3", unknown)
    taking_part, left_out = generation.taking_part(["hfaccel int8", "hfaccel int3"], bf16=True)
    assert taking_part == ["hfaccel int8"]
    assert left_out["hfaccel int3"].startswith("not offered by this version: quantization must be")


def test_bfloat16_is_left_out_where_nothing_multiplies_it():
    taking_part, left_out = generation.taking_part(["eager fp32", "openvino bf16"], bf16=False)
    assert taking_part == ["eager fp32"]
    assert list(left_out) == ["openvino bf16"]


def test_sides_have_equal_threads_and_only_llama_spins(monkeypatch):
    monkeypatch.setattr(generation, "INTERPRETERS", {"llama.cpp": lambda: "python-of-llama"})
    one, two = (generation.side(name, "qwen2-0.5b", 3) for name in ("eager fp32", "llama.cpp q8_0"))
    assert one.environment == {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "passive"}
    assert two.environment == {"OMP_NUM_THREADS": "3"} and two.without == ("OMP_WAIT_POLICY",)
    assert two.launcher == ("python-of-llama",)


def test_options_have_everything_by_default():
    options = generation.parse(["--pairs", "3", "--models", "smollm-135m"])
    assert (options.pairs, options.models) == (3, ["smollm-135m"])
    assert options.engines == list(engines.ENGINES)


# Arithmetic and table


def test_a_step_is_timed_without_the_first_token_and_a_single_token_by_itself():
    assert engines.seconds_of([1.0, 3.0, 3.5, 4.0]) == 0.5
    assert engines.seconds_of([1.0, 3.0]) == 2.0


def test_an_engine_that_stops_early_is_not_timed():
    with pytest.raises(ValueError, match="3 tokens were asked for, but the engine generated 1"):
        engines.timed(lambda tokens, count, told: told(7), [1, 2], 3)


def test_a_streamer_tells_no_prompt():
    told = []
    streamer = engines.Streamer(told.append)
    for tokens in ([[5, 6]], [7], [8]):
        streamer.put(torch.tensor(tokens))
    assert told == [7, 8]


def test_the_share_is_of_the_best_bandwidth_of_the_run():
    turns = {
        "decode": [{"bandwidth": 0.25, "eager bf16": 0.1}, {"bandwidth": 0.5, "eager bf16": 0.1}],
        "prefill": [{"bandwidth": 0.4, "eager bf16": 2.0}, {"bandwidth": 0.4, "eager bf16": 3.0}],
    }
    facts = {"bandwidth": {"bytes": 10_000_000_000}, "eager bf16": {"bytes": 1_000_000_000, "threads": 2}}
    told = generation.row("eager bf16", turns, facts)
    assert (told["bandwidth"], told["share"], told["threads"]) == (40_000_000_000, 0.25, 2)
    assert told["ms"] == {"decode": 100.0, "prefill": 2500.0}


def test_rounds_take_every_cell_and_do_not_count_the_first():
    class Counting(Engines):
        def __init__(self):
            self.taken = 0

        def round(self, number):
            self.taken += 1
            return {"a": float(self.taken)}

    turns = generation.rounds(Counting(), [*generation.CELLS], "a model", 2)
    assert turns == {"decode": [{"a": 3.0}, {"a": 5.0}], "prefill": [{"a": 4.0}, {"a": 6.0}]}


def test_the_table_has_a_line_for_what_failed(capsys):
    generation.show("qwen2-0.5b", [BASE, {"engine": "openvino int4", "failed": "ended"}], "eager bf16")
    shown = capsys.readouterr().out
    assert "40.0 GB/s" in shown and "80 (1.00)" in shown
    assert "openvino int4" in shown and "ended" in shown


# Models and checks


@pytest.fixture
def tiny(monkeypatch):
    """A Llama that is made in no time, under a name of its own."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 1100}
    whole = models.CONFIGURATIONS["smollm-135m"]
    monkeypatch.setitem(
        models.CONFIGURATIONS,
        "tiny",
        lambda: whole(**sizes, num_attention_heads=2, num_key_value_heads=1, head_dim=16),
    )
    return "tiny"


def test_weights_depend_on_names_alone(tiny):
    torch.manual_seed(1)
    one = models.build(tiny)
    torch.manual_seed(2)
    two = models.build(tiny)
    for name, weight in one.named_parameters():
        assert torch.equal(weight, two.get_parameter(name))
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert torch.equal(one.model.norm.weight, torch.ones(32))
    assert float(one.model.embed_tokens.weight.detach().std()) == pytest.approx(models.STD, rel=0.05)


def test_matrices_are_counted_once_and_vectors_not(tiny):
    attention, mlp = 2 * 32 * 32 + 2 * 16 * 32, 3 * 32 * 64
    assert models.count_weights(models.build(tiny)) == 1100 * 32 + attention + mlp


def test_eager_agrees_with_itself_and_other_tokens_are_regretted(tiny):
    run, size = engines.eager(tiny, torch.float32)
    given = checks.prompts(tiny)
    generated = [engines.timed(run, one, checks.TOKENS)[1] for one in given]
    module = models.build(tiny)
    assert size == 4 * models.count_weights(module)
    assert checks.compare(module, given, generated) == {"agreement": 1.0, "regret": 0.0}
    wrong = [[(token + place) % 1100 for place, token in enumerate(tokens, 1)] for tokens in generated]
    told = checks.compare(module, given, wrong)
    assert told["agreement"] < 0.5 and told["regret"] > 1
