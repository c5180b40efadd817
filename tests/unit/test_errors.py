"""Every error: drawn in the tree, stable, picklable, and with a status."""

from __future__ import annotations

import copy
import itertools
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpsearch import errors
from hpsearch.api.problems import STATUS, of_error
from hpsearch.results import Failure

DOCS = Path(__file__).parents[2] / "docs"
HTTP_ONLY = {"invalid_request", "method_not_allowed", "http_error", "internal_error", "database_unavailable"}
"""Codes of problems that are no error of ours: of the protocol, or of the service as a whole."""


def tree(kind: type[errors.HpsearchError], depth: int = 0) -> Iterator[tuple[int, type[errors.HpsearchError]]]:
    yield depth, kind
    for child in kind.__subclasses__():
        yield from tree(child, depth + 1)


KINDS = [kind for _, kind in tree(errors.HpsearchError)]


def test_the_drawn_tree_is_the_tree() -> None:
    drawn = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ((?:[│ ] {3})*(?:[├└]── )?)([A-Z]\w+)", line)
        if found:
            drawn.append((len(found[1]) // 4, found[2]))
    assert drawn == [(depth, kind.__name__) for depth, kind in tree(errors.HpsearchError)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_with_its_fields(kind: type[errors.HpsearchError]) -> None:
    for error in (kind(), kind("what happened", "data.train", 7)):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert type(again) is kind
            assert (again.detail, again.field, again.line) == (error.detail, error.field, error.line)
            assert str(again) == str(error)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_says_something_useful_by_itself(kind: type[errors.HpsearchError]) -> None:
    assert kind.__doc__
    assert len(str(kind())) > 20
    assert str(kind("what happened")) == "what happened"


def test_every_class_has_a_code_of_its_own() -> None:
    shared = {code: n for code, n in Counter(kind.code for kind in KINDS).items() if n > 1}
    assert shared == {}
    assert all("code" in vars(kind) for kind in KINDS)


def test_a_failure_of_a_trial_has_the_code_of_its_error() -> None:
    codes = {kind.code for kind in KINDS if issubclass(kind, errors.TrialFailure)}
    assert codes <= {str(failure) for failure in Failure}


STATUSES = {
    "InvalidInput": 422,
    "InvalidSpec": 422,
    "InvalidDataset": 422,
    "TooFewExamples": 422,
    "UnknownModel": 422,
    "HubUnavailable": 422,
    "UnsupportedModel": 422,
    "UnknownDataset": 422,
    "OutdatedCheckpoint": 422,
    "PathNotAllowed": 422,
    "TooLarge": 413,
    "NotFound": 404,
    "StudyNotFound": 404,
    "TrialNotFound": 404,
    "AdapterNotFound": 404,
    "Conflict": 409,
    "NameTaken": 409,
    "IllegalMove": 409,
    "BudgetSpent": 409,
    "IdempotencyMismatch": 409,
    "TrialFinished": 409,
    "ChangedMeanwhile": 412,
    "Unauthorized": 401,
    "Forbidden": 403,
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_its_status(kind: type[errors.HpsearchError]) -> None:
    answer = of_error(kind("what happened"))
    assert answer.status_code == STATUSES.get(kind.__name__, 500)
    assert answer.media_type == "application/problem+json"


def test_no_row_of_the_status_table_hides_another() -> None:
    for place, (kind, _, _) in enumerate(STATUS):
        assert not any(issubclass(kind, above) for above, _, _ in STATUS[:place])


def test_the_error_table_of_the_documentation_lists_exactly_the_codes() -> None:
    lines = (DOCS / "api.md").read_text().splitlines()
    (head,) = [place for place, line in enumerate(lines) if re.match(r"\|\s*`?code`?\s*\|", line, re.IGNORECASE)]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines[head + 2 :])
    documented = [row.split("|")[1].strip().strip("`") for row in rows]
    assert sorted(documented) == sorted({kind.code for kind in KINDS} | HTTP_ONLY)
