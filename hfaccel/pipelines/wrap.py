"""Gives a transformers pipeline hfaccel's loop: same class for isinstance, same arguments and results."""

from __future__ import annotations

from typing import TypeVar

from transformers.pipelines import Pipeline

from hfaccel.outcome import Outcome
from hfaccel.pipelines.scheduled import GENERATES, STOCK_CALLS, Scheduled, why_not
from hfaccel.pipelines.tasks import scheduled_for
from hfaccel.replacement import replace, undo
from hfaccel.upstream import Need, problem

T = TypeVar("T")


def wrap(pipe: T) -> T:
    """Give the pipeline hfaccel's loop, in place. Any other object is returned unchanged."""
    if isinstance(pipe, Pipeline) and not isinstance(pipe, Scheduled) and not problem(Need.PIPELINES):
        replace(pipe, scheduled_for(type(pipe)))
    return pipe


def unwrap(pipe: T) -> T:
    """Undo `wrap`, in place."""
    if isinstance(pipe, Scheduled):
        undo(pipe)
    return pipe


def outcome(pipe: object) -> Outcome:
    """The line of a report about this pipeline's loop."""
    subject = f"pipeline {getattr(pipe, 'task', '') or type(pipe).__name__}"
    reason = why_not(pipe)
    if reason == GENERATES and getattr(pipe, "hfaccel_continues", False):
        return Outcome(subject, True, "lists of prompts that are continued greedily share calls of the model")
    if reason:
        return Outcome(subject, False, f"transformers' own loop runs: {reason}")
    return Outcome(
        subject, True, "inputs are prepared while the model computes; similar lengths share batches"
    )


def stock_calls(pipe: object) -> dict[str, int]:
    """Reason -> calls that ran transformers' own loop, or prepared inputs before the model computed."""
    return dict(getattr(pipe, STOCK_CALLS, {}))
