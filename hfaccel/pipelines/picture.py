"""A profile as a picture, drawn by matplotlib (the extra `plots`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hfaccel.errors import HfaccelError
from hfaccel.pipelines.figures import Figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEPS = {"prepare": "tab:blue", "compute": "tab:green", "finish": "tab:orange"}


def draw(profile: Figures, path: Path) -> None:
    """Write the picture of `profile` to `path`. Raises HfaccelError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure  # no pyplot: it would choose a backend for the whole program
    except ImportError as error:
        raise HfaccelError(
            f"a picture needs matplotlib, which cannot be imported ({error}); pip install matplotlib"
        ) from error
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplot_mosaic([["time", "time"], ["lengths", "batches"]])
    figure.suptitle(f"{profile.task}, {profile.model}: {profile.inputs} inputs in {profile.seconds:.2f} s")
    _timeline(axes["time"], profile)
    _lengths(axes["lengths"], profile)
    _batches(axes["batches"], profile)
    figure.savefig(path)


def _timeline(axes: Axes, profile: Figures) -> None:
    for row, (step, color) in enumerate(STEPS.items()):
        bars = [(begin, end - begin) for begin, end in profile.spans[step]]
        axes.broken_barh(bars, (row - 0.4, 0.8), color=color)
    axes.set_yticks(range(len(STEPS)), list(STEPS))
    axes.invert_yaxis()
    axes.set(xlabel="seconds", xlim=(0, profile.seconds), title="what runs when")


def _lengths(axes: Axes, profile: Figures) -> None:
    axes.hist(profile.lengths or [0], bins=30)
    axes.set(xlabel="tokens", ylabel="inputs", title="lengths")


def _batches(axes: Axes, profile: Figures) -> None:
    numbers = range(len(profile.batches))
    positions = [batch.rows * (batch.length or 1) for batch in profile.batches]
    tokens = [batch.tokens for batch in profile.batches]
    axes.bar(numbers, positions, width=1.0, color="lightgray", label="padding" if profile.lengths else "rows")
    if profile.lengths:
        axes.bar(numbers, tokens, width=1.0, label="tokens")
        axes.legend()
    axes.set(xlabel="batch", title=f"batches, {profile.padding:.0%} padding")
