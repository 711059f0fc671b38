"""Whether a side computes what the baseline computes: a fast side with other results is wrong. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hfaccel.errors import UsageError

Array = npt.NDArray[np.float32]
# Of float32: the largest difference, as a share of the largest number. Of others: 1 minus the least cosine of
# the vectors, or 1 minus that of all numbers where there are no vectors.
ALLOWED = {"fp32": 2e-3, "bf16": 0.02, "int8": 0.08, "int8-weight-only": 0.03, "int4-weight-only": 0.15}
# Of generated tokens: how far they lie behind the baseline's choices, in standard deviations of the logits.
ALLOWED_REGRET = {"fp32": 0.01, "bf16": 0.1, "int8": 0.4, "int8-weight-only": 0.2, "int4-weight-only": 0.8}


class Verdict(NamedTuple):
    largest_difference: float
    allowed: float

    @property
    def problem(self) -> str:
        """Why the results are wrong; "" for none."""
        if self.largest_difference <= self.allowed:
            return ""
        return f"its results differ by {self.largest_difference:.2g}, and {self.allowed:.2g} is allowed"

    def to_dict(self) -> dict[str, object]:
        finite = np.isfinite(self.largest_difference)
        return {
            "largest_difference": float(f"{self.largest_difference:.3g}") if finite else None,
            "allowed": self.allowed,
        }


def judge(base: Array, other: Array, precision: str) -> Verdict:
    """Compare results of the same inputs. Other shapes differ infinitely, and so does NaN from a number."""
    allowed = _allowed(ALLOWED, precision)
    if base.shape != other.shape or not np.array_equal(np.isfinite(base), np.isfinite(other)):
        return Verdict(float("inf"), allowed)
    one, two = np.nan_to_num(base.astype(np.float64)), np.nan_to_num(other.astype(np.float64))
    if precision == "fp32":
        return Verdict(_relative(one, two), allowed)
    return Verdict(_angle(one, two), allowed)


def judge_regret(regret: float, precision: str) -> Verdict:
    allowed = _allowed(ALLOWED_REGRET, precision)
    return Verdict(regret if np.isfinite(regret) else float("inf"), allowed)


def _allowed(table: dict[str, float], precision: str) -> float:
    if precision not in table:
        raise UsageError(f"precision must be one of {', '.join(table)}, but got {precision!r}")
    return table[precision]


def _relative(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> float:
    size = np.abs(one).max(initial=0.0)
    difference = np.abs(one - two).max(initial=0.0)
    return float(difference / size) if size else float(difference)


def _angle(one: npt.NDArray[np.float64], two: npt.NDArray[np.float64]) -> float:
    """1 minus the least cosine. Vectors without length are equal to each other, and to nothing else."""
    width = one.shape[-1] if one.ndim > 1 and one.shape[-1] > 1 else max(one.size, 1)
    one, two = one.reshape(-1, width), two.reshape(-1, width)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    products = (one * two).sum(1)
    equal = (one == two).all(1)
    cosines = np.where(equal, 1.0, products / np.where(lengths > 0, lengths, 1.0))
    return float(max(0.0, 1 - cosines.min(initial=1.0)))
