"""Measuring: two sides in turn, each in a fresh process, judged by the median of their ratios."""

from hfaccel.bench.pairs import Comparison, Side, Worker, compare, take_turn, take_turns

__all__ = ["Comparison", "Side", "Worker", "compare", "take_turn", "take_turns"]
