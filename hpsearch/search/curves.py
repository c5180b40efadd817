"""Where learning curves end: one Gaussian process over params and time, fitted to all curves of a study.

Covariance of two reports of configs x, x' at times t, t' (log exposure, part of the trial's schedule, log work):

    a T(t, t') + X(x, x') (b + c T(t, t')) + d [same trial] + s [same report]

The curve that all trials share, what params change about its height and its shape, and what is a trial's own: after
freeze-thaw Bayesian optimisation (Swersky et al. 2014, https://arxiv.org/abs/1406.3896), with a stationary kernel for
time. The part of the schedule is an axis of its own, because a trial whose learning rate has yet to fall lies above
one that has finished, at equal exposure, and will not stay there. So is work, which a small learning rate does less of
(`evidence.times`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

Array = NDArray[np.float64]

TIMES = 3
"""Axes of time."""

_PRIOR = {"x": (np.log(0.6), 0.8), "t": (np.log(0.7), 0.8)}
_SCALES = ((np.log(0.5), 1.0), (np.log(0.5), 1.0), (np.log(0.3), 1.0), (np.log(0.01), 1.0), (np.log(1e-3), 1.0))
_JITTER = 1e-8


@dataclass(frozen=True)
class Points:
    """Places where curves are known or asked for."""

    x: Array
    """Params, each in [0, 1]: [n, d]."""
    t: Array
    """Time: [n, 3]."""
    trial: NDArray[np.int64]
    """Whose: [n]; -1 for nobody's."""

    @property
    def columns(self) -> tuple[Array, Array, NDArray[np.int64]]:
        """All three."""
        return self.x, self.t, self.trial


def prior(dimensions: int) -> Array:
    """Log hyperparameters before any data: d + 3 length scales, then a, b, c, d, s."""
    return np.array([_PRIOR["x"][0]] * dimensions + [_PRIOR["t"][0]] * TIMES + [mean for mean, _ in _SCALES])


def _spread(dimensions: int) -> Array:
    return np.array([_PRIOR["x"][1]] * dimensions + [_PRIOR["t"][1]] * TIMES + [spread for _, spread in _SCALES])


def fit(points: Points, y: Array, iterations: int = 25) -> Array:
    """The log hyperparameters with the highest posterior density. `y` has mean 0 and variance 1."""
    center, spread = prior(points.x.shape[1]), _spread(points.x.shape[1])
    squares_x = np.square(points.x[:, None] - points.x[None]).transpose(2, 0, 1).copy()
    squares_t = np.square(points.t[:, None] - points.t[None]).transpose(2, 0, 1).copy()
    same = (points.trial[:, None] == points.trial[None]).astype(float)
    eye = np.eye(len(y))

    def loss(theta: Array) -> tuple[float, Array]:
        d = points.x.shape[1]
        inverse = np.exp(-2 * theta[: d + TIMES])
        a, b, c, own, noise = np.exp(theta[d + TIMES :])
        r = np.sqrt(5 * np.tensordot(inverse[:d], squares_x, 1))
        decay = np.exp(-r)
        kx = (1 + r + r * r / 3) * decay
        kt = np.exp(-0.5 * np.tensordot(inverse[d:], squares_t, 1))
        k = a * kt + kx * (b + c * kt) + own * same + (noise + _JITTER) * eye
        if not np.isfinite(k).all():  # a long step of the search for the top
            return 1e10, np.zeros_like(theta)
        try:
            lower = cholesky(k, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        alpha = cho_solve((lower, True), y, check_finite=False)
        gap = (theta - center) / spread
        value = 0.5 * y @ alpha + np.log(np.diag(lower)).sum() + 0.5 * gap @ gap
        weight = 0.5 * (cho_solve((lower, True), eye, check_finite=False) - np.outer(alpha, alpha))
        slope_x = weight * (b + c * kt) * (5 / 3) * (1 + r) * decay
        slope_t = weight * (a + c * kx) * kt
        gradient = np.empty_like(theta)
        gradient[:d] = inverse[:d] * np.tensordot(squares_x, slope_x, 2)
        gradient[d : d + TIMES] = inverse[d:] * np.tensordot(squares_t, slope_t, 2)
        gradient[d + TIMES :] = (
            a * np.sum(weight * kt),
            b * np.sum(weight * kx),
            c * np.sum(weight * kx * kt),
            own * np.sum(weight * same),
            noise * np.trace(weight),
        )
        return float(value), gradient + gap / spread

    with np.errstate(over="ignore", invalid="ignore"):
        found = minimize(loss, center, jac=True, method="L-BFGS-B", options={"maxiter": iterations})
    best: Array = found.x
    return best


class Curves:
    """The curves of a study, as far as they are known."""

    def __init__(self, points: Points, y: Array, theta: Array) -> None:
        self._points, self._y, self._theta = points, y, theta
        k = self._covariance(points, points)
        noise = np.exp(theta[-1])
        self._lower = cholesky(k + (noise + _JITTER) * np.eye(len(y)), lower=True, check_finite=False)
        self._alpha = cho_solve((self._lower, True), y, check_finite=False)

    def predict(self, asked: Points) -> tuple[Array, Array]:
        """Mean and standard deviation at each point, without a report's own noise."""
        k = self._covariance(self._points, asked)
        a, b, c, own, _ = np.exp(self._theta[-5:])
        inner = solve_triangular(self._lower, k, lower=True, check_finite=False)
        variance = a + b + c + own - np.square(inner).sum(axis=0)
        mean: Array = k.T @ self._alpha
        return mean, np.sqrt(np.maximum(variance, 1e-12))

    def told(self, points: Points, y: Array) -> Curves:
        """The same, knowing more."""
        both = Points(*(np.concatenate(pair) for pair in zip(self._points.columns, points.columns, strict=True)))
        return Curves(both, np.concatenate([self._y, y]), self._theta)

    def _covariance(self, one: Points, two: Points) -> Array:
        d = one.x.shape[1]
        lengths = np.exp(self._theta[: d + TIMES])
        a, b, c, own, _ = np.exp(self._theta[d + TIMES :])
        r = np.sqrt(5 * _squares(one.x / lengths[:d], two.x / lengths[:d]))
        kx = (1 + r + r * r / 3) * np.exp(-r)
        kt = np.exp(-0.5 * _squares(one.t / lengths[d:], two.t / lengths[d:]))
        same = (one.trial[:, None] == two.trial[None]) & (one.trial[:, None] >= 0)
        return np.asarray(a * kt + kx * (b + c * kt) + own * same)


def _squares(one: Array, two: Array) -> Array:
    """Squared distances, [n, m]."""
    squares = np.square(one).sum(1)[:, None] + np.square(two).sum(1)[None] - 2 * one @ two.T
    return np.asarray(np.maximum(squares, 0.0))
