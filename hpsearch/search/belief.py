"""What is believed about a study's best params before its first trial: they lie near the `auto` defaults.

A draw's promise is weighed by how near the defaults it lies, which counts less with every trial: piBO (Hvarfner et al.
2022, https://arxiv.org/abs/2204.11051). Here it also counts less where the model of the trials so far contradicts it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution
from scipy.special import ndtr, ndtri

from hpsearch.search.evidence import number
from hpsearch.spec.space import Params

Array = NDArray[np.float64]

SPREAD = 0.25
"""Standard deviation around each number's default, in parts of its range (in the logarithm for `log`)."""

OTHER_WORD = float(np.exp(-0.5))
"""How dense a word is beside the default one: as a number one standard deviation from its default."""

DOUBT = 4
"""The power falls with this power of the agreement of the model: 2 and less let wrong defaults cost more."""


class Belief:
    """A density over the cube of a search space: a Gaussian around each number's default, cut off at its ends.

    Args:
        distributions: The space, in the cube's order.
        defaults: A value for each parameter of the space.
        strength: Of the belief; 0 is none.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], defaults: Params, strength: float) -> None:
        self._strength = strength
        self._choices = np.array([_words(distribution) for distribution in distributions.values()])
        self._centers = np.array([number(space, defaults[name]) for name, space in distributions.items()])
        # A word has no place between others: here is its index.
        self._words = np.round(self._centers * np.maximum(self._choices - 1, 0))
        within = ndtr((1 - self._centers) / SPREAD) - ndtr((0 - self._centers) / SPREAD)
        of_words = (1 + OTHER_WORD * (self._choices - 1)) / np.maximum(self._choices, 1)
        # Each coordinate's part, where it may be anything: the logarithm of the density's mean.
        self._anywhere = np.log(np.where(self._choices > 0, of_words, SPREAD * math.sqrt(2 * math.pi) * within))

    def log_density(self, points: Array, matters: NDArray[np.bool_] | None = None) -> Array:
        """Relative to that of the defaults, [n]: at most 0.

        Args:
            points: Of the cube, [n, d].
            matters: Which coordinates do, [n, d]; None where all do. The others lie anywhere: what trials lack is no
                reason to try them, nor to leave them out.
        """
        beside = np.minimum(np.floor(points * self._choices), self._choices - 1) != self._words
        away = np.square((points - self._centers) / SPREAD)
        logs = np.where(self._choices > 0, np.where(beside, np.log(OTHER_WORD), 0.0), -0.5 * away)
        if matters is not None:
            logs = np.where(matters, logs, self._anywhere)
        return np.asarray(logs.sum(axis=1))

    def near(self, evenly: Array) -> Array:
        """Points of the cube by this density, from as many that are spread evenly: [n, d]."""
        lowest, highest = ndtr((0 - self._centers) / SPREAD), ndtr((1 - self._centers) / SPREAD)
        numbers = self._centers + SPREAD * ndtri(lowest + evenly * (highest - lowest))
        of_default = 1 / (1 + OTHER_WORD * np.maximum(self._choices - 1, 0))
        rest = (evenly - of_default) / np.maximum(1 - of_default, 1e-9)
        other = np.minimum(np.floor(rest * (self._choices - 1)), self._choices - 2)
        word = np.where(evenly < of_default, self._words, other + (other >= self._words))
        words = (word + 0.5) / np.maximum(self._choices, 1)
        return np.asarray(np.clip(np.where(self._choices > 0, words, numbers), 0.0, 1.0))

    def power(self, place: int, densities: Array, promises: Array) -> float:
        """What the density is raised to where it weighs a trial's promises.

        Args:
            place: The trial's number; at least 1.
            densities: `log_density` of points spread evenly over the cube, [n].
            promises: Expected improvement of each by the model, which knows no defaults.
        """
        density = np.exp(densities)
        agreement = float((promises * density).mean() / max(promises.mean() * density.mean(), 1e-300))
        return self._strength / place * min(1.0, agreement) ** DOUBT


def _words(distribution: BaseDistribution) -> int:
    """How many words a parameter chooses from; 0 for one of numbers."""
    choices = distribution.choices if isinstance(distribution, CategoricalDistribution) else ()
    return len(choices) if any(isinstance(choice, str) for choice in choices) else 0
