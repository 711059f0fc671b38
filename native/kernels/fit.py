"""The coefficients in vector.h: least-squares fits, repeatedly reweighted where the error is largest.

python native/kernels/fit.py
"""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

ROUNDS = 80


def nodes(end: float, count: int = 4000) -> np.ndarray:
    """Chebyshev nodes on [0, end]."""
    return end / 2 * (1 + np.cos(np.pi * (np.arange(count) + 0.5) / count))


def fit_erf(numerator: int, denominator: int, end: float = 4.0) -> tuple[np.ndarray, np.ndarray, float]:
    """erf(x) = x P(x^2) / Q(x^2) on [0, end], by the linearised problem; with its largest error."""
    x = nodes(end)
    u = (x / end) ** 2
    target = np.array([erf(value) for value in x]) / x
    tops, bottoms = (
        np.vander(u, numerator + 1, increasing=True),
        np.vander(u, denominator + 1, increasing=True),
    )
    weight, q = x.copy(), np.ones_like(x)
    best: tuple[np.ndarray, np.ndarray, float] | None = None
    for _ in range(ROUNDS):
        scale = weight / np.abs(q)
        system = np.concatenate([tops, -target[:, None] * bottoms[:, 1:]], axis=1)
        solution = np.linalg.lstsq(system * scale[:, None], target * scale, rcond=None)[0]
        p_of, q_of = solution[: numerator + 1], np.concatenate([[1], solution[numerator + 1 :]])
        q = bottoms @ q_of
        error = np.abs(tops @ p_of / q - target) * x
        if best is None or error.max() < best[2]:
            powers = [end ** (2.0 * np.arange(len(c))) for c in (p_of, q_of)]
            best = p_of / powers[0], q_of / powers[1], float(error.max())
        weight *= 0.5 + error / error.max()
        weight /= weight.max()
    assert best is not None
    return best


def fit_rough_gelu(degree: int, end: float) -> tuple[np.ndarray, float]:
    """GELU(x) = x (1/2 + x P(x^2)) on [0, end]; with its largest error."""
    x = nodes(end)
    target = np.array([erf(value / sqrt(2)) / 2 for value in x])
    system = np.vander((x / end) ** 2, degree + 1, increasing=True) * x[:, None]
    weight = np.maximum(x, 0.1)
    for _ in range(ROUNDS):
        solution = np.linalg.lstsq(system * weight[:, None], target * weight, rcond=None)[0]
        error = np.abs(system @ solution - target) * np.maximum(x, 0.1)
        weight *= 0.5 + error / error.max()
        weight /= weight.max()
    return solution / end ** (2.0 * np.arange(degree + 1)), float(error.max())


def fit_rough_power(degree: int) -> tuple[np.ndarray, float]:
    """2^x on [0, 1]; with its largest relative error."""
    x = nodes(1.0)
    target = np.exp2(x)
    system, weight = np.vander(x, degree + 1, increasing=True), np.ones_like(x)
    for _ in range(ROUNDS):
        solution = np.linalg.lstsq(system * (weight / target)[:, None], weight, rcond=None)[0]
        error = np.abs(system @ solution / target - 1)
        weight *= 0.5 + error / error.max()
        weight /= weight.max()
    return solution, float(error.max())


def main() -> None:
    p, q, error = fit_erf(5, 5)
    print(f"erf: error {error:.1e}\nP {p}\nQ {q}")
    rough, error = fit_rough_gelu(5, 3.5)
    print(f"rough GELU: error {error:.1e}\nP {rough}")
    power, error = fit_rough_power(3)
    print(f"rough 2^x: relative error {error:.1e}\nP {power}")


if __name__ == "__main__":
    main()
