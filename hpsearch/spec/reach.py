"""What of a search space can be reached: conditions that hold nowhere are found before anything is queued."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

from hpsearch.errors import InvalidSpec
from hpsearch.spec.points import active, unmet
from hpsearch.spec.space import Params
from hpsearch.spec.study import StudySpec

MOST_LOOKED_AT = 4000
"""Points; so many of a larger space, by chance. A search gives up after a thousand for one trial."""

CUTS = 33
"""Points that a range without steps is cut into."""


def check_reach(spec: StudySpec, examples: int) -> list[str]:
    """Warnings of parameters that no point has.

    Args:
        spec: The study.
        examples: Size of the training set, which conditions may name.

    Raises:
        InvalidSpec: No point may be tried.
    """
    absent, missed, looked_at = spec.search_space.conditions(), Counter[str](), 0
    for params in _points(spec):
        looked_at += 1
        chosen = active(spec, params, examples)
        for name in chosen.keys() & absent.keys():
            del absent[name]
        missed[unmet(spec, chosen, examples) or ""] += 1
        if "" in missed and not absent:
            return []
    where = "points of the search space" if looked_at < MOST_LOOKED_AT else f"{looked_at:,} points that were looked at"
    if "" not in missed:
        (worst, _), *_ = missed.most_common(1)
        raise InvalidSpec(f"require: none of the {where} may be tried; most don't meet '{worst}'", "require")
    return [
        f"search_space.{name}: none of the {where} has it, so it is never searched; its `when` is '{condition}'"
        for name, condition in absent.items()
    ]


def _points(spec: StudySpec) -> Iterator[Params]:
    values = {name: parameter.values(CUTS) or () for name, parameter in spec.search_space.varying().items()}
    if spec.search_space.size(CUTS) < MOST_LOOKED_AT:
        yield from (dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values()))
        return
    dice = random.Random(0)  # the same answer each time
    for _ in range(MOST_LOOKED_AT):
        yield {name: dice.choice(known) for name, known in values.items()}
