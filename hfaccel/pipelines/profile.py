"""profile(): where a pipeline spends its time, what its batches look like, and what would help."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from hfaccel.errors import ModelError
from hfaccel.pipelines.advice import advise
from hfaccel.pipelines.figures import Figures, Phase
from hfaccel.pipelines.picture import draw
from hfaccel.tables import render


@dataclass(frozen=True)
class Profile(Figures):
    """One run of a pipeline. Times are seconds, lengths tokens. `print` shows tables, `save` draws them."""

    @property
    def advice(self) -> tuple[str, ...]:
        return advise(self)

    def to_dict(self) -> dict[str, object]:
        derived = {"rows": self.rows, "tokens": self.tokens, "padding": self.padding, "advice": self.advice}
        return asdict(self) | derived

    def save(self, path: str | Path) -> None:
        """Draw the run: its timeline, its lengths and its batches. The suffix decides: .png, .svg, .pdf.

        Raises HfaccelError where matplotlib is missing.
        """
        draw(self, Path(path))

    def __str__(self) -> str:
        title = f"{self.task}, {self.model} ({self.dtype}), {self.loop}' loop".replace(
            "hfaccel'", "hfaccel's"
        )
        return "\n".join(
            [
                render(title, ["step", "seconds", "of the run", "model waits", "of the run"], self._phases()),
                render("batches", ["what", "number", "least", "median", "p90", "most"], self._sizes()),
                render("what would help", ["advice"], [[line] for line in self.advice or ("nothing",)]),
            ]
        )

    def _phases(self) -> list[list[str]]:
        steps = {"prepare (tokenize)": self.prepare, "compute": self.compute, "finish": self.finish}
        rows = [
            [
                name,
                f"{p.total:.3f}",
                f"{self.share(p.total):.1%}",
                f"{p.waited:.3f}",
                f"{self.share(p.waited):.1%}",
            ]
            for name, p in steps.items()
        ]
        rest = max(0.0, self.seconds - self.compute.total - self.prepare.waited - self.finish.waited)
        share = f"{self.share(rest):.1%}"
        rows.append(["reading inputs, forming batches", f"{rest:.3f}", share, f"{rest:.3f}", share])
        speed = f"{self.inputs / self.seconds:.1f} inputs/s" if self.seconds else "-"
        return [*rows, ["run", f"{self.seconds:.3f}", "100.0%", speed, ""]]

    def _sizes(self) -> list[list[object]]:
        rows = [["tokens of an input", *_spread(self.lengths)]] if self.lengths else []
        rows.append(["sequences in a batch", *_spread([batch.rows for batch in self.batches])])
        if self.lengths:
            rows.append(["tokens in a batch", *_spread([batch.tokens for batch in self.batches])])
            rows.append(["padding", f"{self.padding:.1%}", "", "", "", ""])
        return rows


def profile(pipe: object, inputs: object, **settings: object) -> Profile:
    """Run a transformers pipeline, optimized or not, over `inputs` and measure where the time goes.

    `inputs`: one input, a list, a generator or a data set, as the pipeline takes them. `settings`: arguments
    of the call, for example `batch_size`. The results are dropped. The first run of a model is slower:
    profile a second one. Raises ModelError for anything but a transformers pipeline, and whatever the call
    raises.
    """
    from transformers.pipelines import Pipeline

    from hfaccel.pipelines import scheduled, timing, wrap

    if not isinstance(pipe, Pipeline):
        raise ModelError(
            f"profile() takes a transformers pipeline, but got {type(pipe).__name__}; "
            "pass what transformers.pipeline or hfaccel.pipeline returned"
        )
    watched, marks = timing.timed(pipe)
    vars(watched).pop(scheduled.STOCK_CALLS, None)
    begin = time.perf_counter()
    count = _exhaust(watched(inputs if _is_many(inputs) else [inputs], **settings))
    whole = time.perf_counter() - begin
    computed = [batch.span for batch in marks.batches]
    reasons = "; ".join(wrap.stock_calls(watched))
    return Profile(
        task=pipe.task or type(pipe).__name__,
        model=type(pipe.model).__name__,
        dtype=str(pipe.model.dtype).removeprefix("torch."),
        loop="hfaccel" if isinstance(pipe, scheduled.Scheduled) and not reasons else "transformers",
        why_stock=reasons,
        fast_tokenizer=getattr(pipe.tokenizer, "is_fast", True),
        inputs=count,
        seconds=whole,
        prepare=Phase(timing.seconds(marks.prepare), timing.outside(marks.prepare, computed)),
        compute=Phase(timing.seconds(computed), 0.0),
        finish=Phase(timing.seconds(marks.finish), timing.outside(marks.finish, computed)),
        batches=tuple(marks.batches),
        lengths=tuple(marks.lengths),
        spans={
            name: tuple((since - begin, until - begin) for since, until in spans)
            for name, spans in (("prepare", marks.prepare), ("compute", computed), ("finish", marks.finish))
        },
    )


def _is_many(inputs: object) -> bool:
    import types

    from torch.utils.data import Dataset

    return isinstance(inputs, list | types.GeneratorType | Dataset)


def _exhaust(results: Iterable[object]) -> int:
    """The number of results. A list is complete; a stream is computed here."""
    return sum(1 for _ in results)


def _spread(values: Sequence[int]) -> list[object]:
    if not values:
        return [0, "-", "-", "-", "-"]
    ordered = sorted(values)
    return [len(ordered), *(ordered[int(share * (len(ordered) - 1))] for share in (0, 0.5, 0.9, 1))]
