"""Sketches, and the groups of near-duplicates that they make."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.dataset import ChatExample, Message, TextExample
from hpsearch.dataset.duplicates import (
    LARGEST_GROUP,
    NEIGHBOURS,
    VALUES,
    Sketches,
    _candidates,
    exact_repeats,
    groups,
    near_repeats,
    repeats_across,
    sketch,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def a_word(dice: random.Random) -> str:
    return "".join(dice.choices(LETTERS, k=dice.randint(2, 8)))


def a_text(dice: random.Random, characters: int) -> str:
    text = a_word(dice)
    while len(text) < characters:
        text += " " + a_word(dice)
    return text


def edited(text: str, dice: random.Random) -> str:
    words = text.split()
    words[dice.randrange(len(words))] = a_word(dice)
    return " ".join(words)


def sketched(texts) -> Sketches:
    sketches = Sketches()
    for line, text in enumerate(texts, start=1):
        sketches.add(TextExample("", text, line))
    return sketches


def grouped(texts) -> list[int]:
    return groups(sketched(texts)).tolist()


def likeness(one: str, other: str) -> float:
    left, right = (np.frombuffer(sketch(text), np.uint8) for text in (one, other))
    return float((left == right).mean())


def jaccard(one: str, other: str) -> float:
    left, right = ({text[at : at + 5] for at in range(len(text) - 4)} for text in (one, other))
    return len(left & right) / len(left | right)


@pytest.mark.parametrize("characters", [60, 200, 500])
@pytest.mark.parametrize("edits", [1, 3, 10, 40])
def test_sketches_estimate_the_share_of_common_pieces(characters, edits):
    dice = random.Random(characters + edits)
    errors = []
    for _ in range(60):
        one = other = a_text(dice, characters)
        for _ in range(edits):
            other = edited(other, dice)
        errors.append(likeness(one, other) - jaccard(one, other))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06


def test_long_texts_are_compared_by_a_sample():
    dice = random.Random(1)
    one = other = a_text(dice, 20_000)
    for _ in range(300):
        other = edited(other, dice)
    assert abs(likeness(one, other) - jaccard(one, other)) < 0.12
    assert likeness(one, a_text(dice, 20_000)) < 0.1


@given(st.text())
def test_a_sketch_is_of_one_size_and_a_function_of_the_text(text):
    assert len(sketch(text)) == VALUES
    assert sketch(text) == sketch(text)


def test_a_sketch_stays_the_same_in_later_versions():
    """A new value here moves examples between training and validation: existing studies would change."""
    assert sketch("short").hex()[:16] == "6f46d6dfc4461804"
    assert sketch("A text that is long enough to be cut into pieces.").hex()[:16] == "cddf2932736d73c7"


def test_case_punctuation_and_white_space_do_not_matter():
    assert sketch("Dear  Sir,\n\nthe ﬁle is missing; please send it again!") == sketch(
        "dear sir the file is missing -- PLEASE send it again"
    )
    assert sketch("Yes!") == sketch(" yes")
    assert sketch("!?") != sketch("?!")  # nothing else is left to compare


def test_system_messages_are_not_compared():
    def a_chat(system: str, asked: str) -> ChatExample:
        messages = (Message("system", system, 0), Message("user", asked, 0), Message("assistant", "Yes.", 1))
        return ChatExample(messages, 1)

    dice = random.Random(2)
    boilerplate, question = a_text(dice, 2000), a_text(dice, 80)
    sketches = Sketches()
    sketches.add(a_chat(boilerplate, question))
    sketches.add(a_chat(boilerplate, a_text(dice, 80)))
    sketches.add(a_chat(a_text(dice, 2000), question))
    assert groups(sketches).tolist() == [0, 1, 0]


@pytest.mark.parametrize("characters", [200, 500, 3000])
@pytest.mark.parametrize("seed", range(5))
def test_all_groups_are_found_in_any_order(characters, seed):
    dice = random.Random(seed)
    bases = [a_text(dice, characters) for _ in range(30)]
    told = [
        (number, text) for number, base in enumerate(bases) for text in [base, *(edited(base, dice) for _ in "1234")]
    ]
    dice.shuffle(told)
    first: dict[int, int] = {}
    expected = [first.setdefault(number, place) for place, (number, _) in enumerate(told)]
    assert grouped(text for _, text in told) == expected


def test_a_template_is_no_near_duplicate():
    dice = random.Random(3)
    instruction = a_text(dice, 700)
    texts = [f"{instruction} {a_text(dice, 80)}" for _ in range(300)]
    near = [f"{texts[number]}!" if number % 2 else f"{texts[number]} indeed" for number in range(20)]
    assert jaccard(texts[0], texts[1]) > 0.78
    found = grouped(texts + near)
    assert found[300:] == list(range(20))
    assert len(set(found[:300])) > 290


def test_a_few_texts_of_one_template_stay_together():
    dice = random.Random(4)
    instruction = a_text(dice, 2000)
    few = [f"{instruction} {a_text(dice, 50)}" for _ in range(LARGEST_GROUP)]
    assert set(grouped(few)) == {0}


def test_exact_duplicates_stay_together_in_the_largest_template():
    dice = random.Random(5)
    instruction = a_text(dice, 5000)
    texts = [f"{instruction} {number}" for number in range(50)]
    assert grouped(texts * 2) == list(range(50)) * 2


def test_texts_of_few_pieces_are_alike_only_when_equal():
    assert grouped(["it is 12", "it is 13", "It is 12!", "", "it is 13"]) == [0, 1, 0, 3, 1]
    assert grouped(["0 " * 200 + "1", "0 " * 200 + "2", "0 " * 200 + "1."]) == [0, 1, 0]  # long, but of few pieces


def test_a_bucket_of_all_costs_no_more_than_a_few_comparisons_each():
    count = sum(len(left) for left, _ in _candidates(np.zeros(5000, np.uint64)))
    assert count <= 5000 * (NEIGHBOURS + 1)


def test_repeats_are_named_once_as_exact_or_as_near():
    dice = random.Random(6)
    text = a_text(dice, 300)
    near = edited(text, dice)
    sketches = sketched([text, "other", near, text, near])
    assert [lines.tolist() for lines in exact_repeats(sketches)] == [[4, 5], [1, 3]]
    assert [lines.tolist() for lines in near_repeats(sketches)] == [[3], [1]]


def test_repeats_across_files():
    dice = random.Random(7)
    texts = [a_text(dice, 300) for _ in range(4)]
    train = sketched(texts)
    later = sketched([a_text(dice, 300), edited(texts[2], dice), texts[1]])
    exact, near = repeats_across(train, later)
    assert (exact.tolist(), [lines.tolist() for lines in near]) == ([3], [[2], [3]])


def test_nothing_has_no_groups():
    assert groups(Sketches()).tolist() == []
    assert [len(lines) for lines in near_repeats(Sketches())] == [0, 0]


@st.composite
def families(draw) -> list[str]:
    """Texts of which some are near-duplicates, exact ones or short, in any order; two of them make no group of 20."""
    dice = random.Random(draw(st.integers(0, 10**6)))
    bases = [a_text(dice, draw(st.sampled_from([10, 60, 250]))) for _ in range(draw(st.integers(1, 8)))]
    variants = draw(st.lists(st.tuples(st.sampled_from(bases), st.integers(0, 2)), max_size=8))
    texts = list(bases)
    for base, edits in variants:
        text = base
        for _ in range(edits):
            text = edited(text, dice)
        texts.append(text)
    return draw(st.permutations(texts))


@given(families())
def test_groups_are_of_texts_that_hang_together(texts):
    found = grouped(texts)
    assert all(first <= place and found[first] == first for place, first in enumerate(found))
    assert all(found[place] == found[texts.index(text)] for place, text in enumerate(texts))
    for text in texts:
        if all(jaccard(text, other) < 0.6 for other in texts if other != text):  # no estimate is 0.2 too high
            assert found[texts.index(text)] == texts.index(text)


@given(families(), families())
def test_appending_joins_groups_and_divides_none(texts, more):
    before, after = grouped(texts), grouped(texts + more)[: len(texts)]
    assert [after[first] for first in before] == after
