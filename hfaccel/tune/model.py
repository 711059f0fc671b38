"""A model of the scores: their logarithm is a sum of effects, one of each axis. Pure.

It finds a good combination long before every pair of values was tried, and its effects say which axes matter.
That settings act together is left to the other half of the trials, which Optuna's sampler proposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hfaccel.bench.setting import Setting
from hfaccel.tune.space import Axis, Point, Space

Array = npt.NDArray[np.float64]
SHRINKING = 0.03  # of effects, which a few noisy trials would exaggerate
FAILED = 1.5  # times the worst score: what a failed trial counts as


class Tried(NamedTuple):
    setting: Setting
    score: float | None  # None: it failed


class Model(NamedTuple):
    columns: tuple[str, ...]  # the axis of each
    weights: Array

    def predict(self, matrix: Array) -> Array:
        """Logarithms of scores, but for a constant."""
        found: Array = matrix @ self.weights
        return found


class Candidates:
    """All settings of a space, as the model sees them."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.settings = list(space.settings)
        self.places = {setting: place for place, setting in enumerate(self.settings)}
        rows = [list(_features(space, point)) for point in space.settings.values()]
        self.columns = tuple(name for name, _ in rows[0])
        self.matrix: Array = np.array([[value for _, value in row] for row in rows])

    def fit(self, tried: Sequence[Tried]) -> Model:
        """`tried` must hold at least one score."""
        worst = max(one.score for one in tried if one.score is not None)
        scores = np.log([worst * FAILED if one.score is None else one.score for one in tried])
        matrix = self.matrix[[self.places[one.setting] for one in tried]]
        penalty = np.eye(matrix.shape[1]) * SHRINKING
        weights = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ (scores - scores.mean()))
        return Model(self.columns, weights)

    def propose(self, tried: Sequence[Tried]) -> Setting | None:
        """The setting with the least predicted score of those not yet tried; None where there is none."""
        predicted = np.zeros(len(self.settings))
        if any(one.score is not None for one in tried):
            predicted = self.fit(tried).predict(self.matrix)
        predicted[[self.places[one.setting] for one in tried]] = np.inf
        best = int(predicted.argmin())
        return self.settings[best] if np.isfinite(predicted[best]) else None

    def importances(self, tried: Sequence[Tried]) -> dict[str, float]:
        """Of each axis with several values: its share of the differences between settings, as modelled."""
        model = self.fit(tried)
        spreads = {axis.name: self._spread(model, axis) for axis in self.space.axes if len(axis.values) > 1}
        total = sum(spreads.values())
        return {name: spread / total if total else 0.0 for name, spread in spreads.items()}

    def _spread(self, model: Model, axis: Axis) -> float:
        mine = [name == axis.name for name in model.columns]
        return float((self.matrix[:, mine] @ model.weights[mine]).var())

    def effects(self, tried: Sequence[Tried]) -> dict[str, Mapping[str, float]]:
        """Of each value of unordered axes: how many times its scores are those of the axis's best value."""
        model = self.fit(tried)
        found: dict[str, Mapping[str, float]] = {}
        for axis in self.space.axes:
            if not axis.ordered and len(axis.values) > 1:
                weights = model.weights[[name == axis.name for name in model.columns]]
                times = np.exp(weights - weights.min()).tolist()
                found[axis.name] = dict(zip(map(str, axis.values), times, strict=True))
        return found


def _features(space: Space, point: Point) -> Iterator[tuple[str, float]]:
    """(axis, number): a column for each value of an axis, or a curve where neighbours are alike."""
    setting = space.setting(point)
    for axis in space.axes:
        if not axis.ordered:
            yield from ((axis.name, float(point[axis.name] == value)) for value in axis.values)
            continue
        place = _place(axis, point, setting)
        yield axis.name, place
        yield axis.name, place * place / 6
    yield "share", float((setting.threads or 1) > space.cores_of_node)


def _place(axis: Axis, point: Point, setting: Setting) -> float:
    if axis.name == "share":
        return math.log2(setting.threads or 1)
    if axis.name == "instances":
        return math.log2(setting.instances)
    return float(axis.values.index(point[axis.name]))
