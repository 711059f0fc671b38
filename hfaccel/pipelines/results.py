"""The results of a call for a stream: an iterator of transformers' class around hfaccel's loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from hfaccel.upstream.of_pipelines import PipelineIterator


class Results(PipelineIterator):  # type: ignore[misc]
    """`iter()` starts again from the first input, as with transformers, unless the inputs are an iterator:
    inputs that were read ahead of the results cannot be read again. `len()` is the number of inputs, if
    known."""

    def __init__(self, inputs: object, begin: Callable[[], Iterator[object]]) -> None:
        super().__init__(inputs, None, None)
        self._begin = begin
        self._goes_on = isinstance(inputs, Iterator)

    def __iter__(self) -> Results:
        if not self._goes_on or "iterator" not in self.__dict__:
            self.iterator = self._begin()
        return self

    def __next__(self) -> object:
        return next(self.iterator)


class Watched(PipelineIterator):  # type: ignore[misc]
    """Results with a progress bar."""

    def __init__(self, results: Iterable[object], inputs: object) -> None:
        super().__init__(inputs, None, None)
        self._results = results

    def __iter__(self) -> Watched:
        from tqdm.auto import tqdm

        total = len(self.loader) if hasattr(self.loader, "__len__") else None
        self._bar = tqdm(total=total, unit="input")
        self.iterator = iter(self._results)
        return self

    def __next__(self) -> object:
        try:
            result = next(self.iterator)
        except BaseException:  # whatever ends the run ends the bar
            self._bar.close()
            raise
        self._bar.update()
        return result
