"""A model of the scores: their logarithm is a sum of effects, one of each axis. Pure.

It finds a good combination long before every pair of values was tried, and its effects say which axes matter.
That settings act together is left to the other half of the trials, which Optuna's sampler proposes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hfaccel.bench.setting import Setting
from hfaccel.tune.space import Axis, Point, Space

Array = npt.NDArray[np.float64]
SHRINKING = 0.03  # of effects, which a few noisy trials would exaggerate
FAILED = 1.5  # times the worst score: what a failed trial counts as


class Tried(NamedTuple):
    point: Point
    score: float | None  # None: it failed


class Model(NamedTuple):
    space: Space
    columns: tuple[str, ...]  # the axis of each
    weights: Array

    def predict(self, points: Sequence[Point]) -> Array:
        """Logarithms of scores, but for a constant."""
        found: Array = _matrix(self.space, points) @ self.weights
        return found


def fit(space: Space, tried: Sequence[Tried]) -> Model:
    """`tried` must hold at least one score."""
    worst = max(one.score for one in tried if one.score is not None)
    scores = np.log([worst * FAILED if one.score is None else one.score for one in tried])
    matrix = _matrix(space, [one.point for one in tried])
    penalty = np.eye(matrix.shape[1]) * SHRINKING
    weights = np.linalg.solve(matrix.T @ matrix + penalty, matrix.T @ (scores - scores.mean()))
    columns = tuple(name for name, _ in _features(space, tried[0].point))
    return Model(space, columns, weights)


def propose(space: Space, tried: Sequence[Tried], seen: Set[Setting]) -> Point | None:
    """The point with the least predicted score of those that are not among the seen; None where none is."""
    unseen = [point for point in space.points() if space.setting(point) not in seen]
    if not unseen or all(one.score is None for one in tried):
        return None
    return unseen[int(fit(space, tried).predict(unseen).argmin())]


def importances(space: Space, tried: Sequence[Tried]) -> dict[str, float]:
    """Of each axis with several values: its share of the differences between all settings, as modelled."""
    points = list(space.points())
    model, matrix = fit(space, tried), _matrix(space, points)
    spreads = {
        axis.name: float(_part(model, matrix, axis.name).var()) for axis in space.axes if len(axis.values) > 1
    }
    total = sum(spreads.values())
    return {name: spread / total if total else 0.0 for name, spread in spreads.items()}


def effects(space: Space, tried: Sequence[Tried]) -> dict[str, Mapping[str, float]]:
    """Of each value of unordered axes: how many times its scores are those of the axis's best value."""
    model = fit(space, tried)
    found: dict[str, Mapping[str, float]] = {}
    for axis in space.axes:
        weights = [
            weight for name, weight in zip(model.columns, model.weights, strict=True) if name == axis.name
        ]
        if not axis.ordered and len(weights) > 1:
            found[axis.name] = {
                str(value): math.exp(weight - min(weights))
                for value, weight in zip(axis.values, weights, strict=True)
            }
    return found


def _part(model: Model, matrix: Array, axis: str) -> Array:
    mine = np.array([name == axis for name in model.columns])
    part: Array = matrix[:, mine] @ model.weights[mine]
    return part


def _matrix(space: Space, points: Sequence[Point]) -> Array:
    return np.array([[value for _, value in _features(space, point)] for point in points])


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
