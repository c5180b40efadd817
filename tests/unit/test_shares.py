"""The division of devices among studies: nobody gets what is not there, nobody starves, nothing is left lying."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.shares import MOST_SLICES, Claim, Need, Share, divide

SLICE = 60.0
MANY = 1000
TICKS = 10
"""In a slice."""


def claim(
    study: str,
    held: int = 0,
    *,
    owner: str = "alice",
    priority: int = 0,
    wanted: int = MANY,
    per_device: int = 1,
    since: float = 0.0,
) -> Claim:
    return Claim(study, owner, priority, Need(wanted, held, per_device), since)


def shares(*claims: Claim, devices: int, weights: dict[str, float] | None = None) -> dict[str, int]:
    return {study: share.trials for study, share in divide(claims, devices, SLICE, weights or {}).items()}


def test_a_study_alone_gets_all_that_it_has_use_for() -> None:
    assert shares(claim("a"), devices=8) == {"a": 8}
    assert shares(claim("a", wanted=3), devices=8) == {"a": 3}
    assert shares(claim("a", per_device=4), devices=2) == {"a": 8}
    assert shares(claim("a"), devices=0) == {"a": 0}


def test_an_owner_s_part_does_not_grow_with_the_number_of_studies() -> None:
    three = [claim(name) for name in "abc"]
    assert shares(*three, claim("z", owner="bob"), devices=12) == {"a": 2, "b": 2, "c": 2, "z": 6}


def test_owners_share_by_their_weights() -> None:
    both = [claim("a"), claim("z", owner="bob")]
    assert shares(*both, devices=8, weights={"alice": 3}) == {"a": 6, "z": 2}
    assert shares(*both, devices=8, weights={"bob": 0.001}) == {"a": 7, "z": 1}


def test_ten_points_of_priority_are_twice_the_part() -> None:
    assert shares(claim("a", priority=10), claim("b"), devices=9) == {"a": 6, "b": 3}
    assert shares(claim("a", priority=10), claim("z", owner="bob"), devices=9) == {"a": 6, "z": 3}
    assert shares(claim("a", priority=100), claim("b", priority=-100), devices=9) == {"a": 8, "b": 1}


def test_an_urgent_study_that_has_enough_lifts_none_of_its_owner_s_others() -> None:
    urgent = claim("urgent", priority=100, wanted=1)
    assert shares(urgent, claim("bulk"), claim("z", owner="bob"), devices=8) == {"urgent": 1, "bulk": 3, "z": 4}


def test_what_one_has_no_use_for_goes_to_the_others() -> None:
    assert shares(claim("a", wanted=1), claim("b"), claim("z", owner="bob", wanted=2), devices=8) == {
        "a": 1,
        "b": 5,
        "z": 2,
    }


def test_studies_that_pack_a_device_share_one() -> None:
    assert shares(claim("a", per_device=4), claim("b", per_device=4), devices=1) == {"a": 2, "b": 2}


def test_a_newcomer_gets_its_place_from_who_has_most() -> None:
    found = divide([claim("a", 4), claim("b", 0, owner="bob")], 4, SLICE, {})
    assert found == {"a": Share(2, 2, 2, Need(MANY, 4), 2, 4), "b": Share(2, 0, 0, Need(MANY, 0), 2, 4)}
    later = divide([claim("a", 3), claim("b", 0, owner="bob")], 4, SLICE, {})
    assert later == {"a": Share(2, 2, 1, Need(MANY, 3), 2, 4), "b": Share(2, 1, 0, Need(MANY, 0), 2, 4)}


def test_nothing_is_taken_from_who_has_too_much_while_nobody_has_use_for_it() -> None:
    assert divide([claim("a", 4), claim("b", 1, wanted=1)], 6, SLICE, {})["a"].release == 0
    below_its_share = divide([claim("a", 3), claim("b", 1, wanted=2)], 4, SLICE, {})
    assert (below_its_share["a"].release, below_its_share["b"].now) == (1, 1)


def test_who_has_too_much_makes_room_for_what_already_waits_in_ray() -> None:
    """The newcomer was told of a place that the other, told a moment earlier, took as well."""
    found = divide([claim("a", 3), claim("b", 1, owner="bob", wanted=1)], 3, SLICE, {})
    assert (found["a"].trials, found["a"].release, found["b"].release) == (2, 1, 0)


def test_nobody_gives_way_to_nobody_when_devices_are_lost() -> None:
    """The trials that were on them end by themselves; those that still run are not to be interrupted, too."""
    assert divide([claim("a", 8)], 4, SLICE, {})["a"].release == 0


def test_many_studies_on_many_devices_are_divided_in_little_time() -> None:
    """It is done every second, beside the threads that drive the studies: not for each study, each owner's anew."""

    def seconds(studies: int) -> float:
        claims = [claim(f"s{place}") for place in range(studies)]
        began = time.process_time()
        divide(claims, 200, SLICE, {})
        return time.process_time() - began

    assert min(seconds(100) for _ in range(3)) < 8 * min(seconds(20) for _ in range(3))


def test_a_waiting_study_gets_its_turn_after_a_slice_and_not_before() -> None:
    holds, waits = claim("a", 1, since=SLICE - 1), claim("b", since=SLICE)
    assert shares(holds, waits, devices=1) == {"a": 1, "b": 0}
    over = replace(holds, since=SLICE)
    found = divide([over, waits], 1, SLICE, {})
    assert (found["a"], found["b"]) == (Share(0, 0, 1, over.need, 2, 1), Share(1, 0, 0, waits.need, 2, 1))
    given_back = replace(over, need=Need(MANY, 0), since=1.0)
    assert divide([given_back, waits], 1, SLICE, {})["b"] == Share(1, 1, 0, waits.need, 2, 1)
    assert shares(replace(over, priority=10, since=2 * SLICE - 1), waits, devices=1) == {"a": 1, "b": 0}


def test_a_trial_that_takes_a_whole_device_gets_one_however_many_small_ones_there_are() -> None:
    """Their turns begin at different times: without room that is kept for it, one of them has always just begun."""
    small = [claim(name, per_device=4, wanted=1) for name in "abcdefgh"]
    got = simulated([claim("whole", wanted=1), *small], 1, 400)
    assert min(got.values()) > 20 * TICKS


def simulated(claims: Sequence[Claim], devices: int, slices: int, weights: dict[str, float] | None = None) -> Counter:
    """How many ticks each study held something, when everybody does as told by the next one."""
    got: Counter[str] = Counter()
    states = list(claims)
    for _ in range(TICKS * slices):
        found = divide(states, devices, SLICE, weights or {})
        following = []
        for state in states:
            share, need = found[state.study], state.need
            held = max(need.held - share.release, min(share.now, need.wanted))
            since = state.since + SLICE / TICKS if (held > 0) == (need.held > 0) else SLICE / TICKS
            got[state.study] += held > 0
            following.append(replace(state, need=replace(need, held=held), since=since))
        states = following
    return got


@pytest.mark.parametrize(
    ("claims", "weights", "parts"),
    [
        pytest.param([claim("a"), claim("b")], {}, {"a": 1, "b": 1}, id="equal"),
        pytest.param([claim("a", priority=20), claim("b")], {}, {"a": 4, "b": 1}, id="priority"),
        pytest.param([claim("a"), claim("b"), claim("z", owner="bob")], {}, {"a": 1, "b": 1, "z": 2}, id="by-owner"),
        pytest.param([claim("a"), claim("z", owner="bob")], {"bob": 3}, {"a": 1, "z": 3}, id="owner-weights"),
    ],
)
def test_turns_divide_the_time_as_the_weights_say(
    claims: list[Claim], weights: dict[str, float], parts: dict[str, int]
) -> None:
    got = simulated(claims, 1, 400, weights)
    whole = sum(parts.values())
    for study, part in parts.items():
        assert got[study] / (got.total()) == pytest.approx(part / whole, abs=0.03)


@pytest.mark.parametrize(
    ("packs", "devices", "least"),
    [([8, 1], 1, 0.45), ([4, 1, 1], 2, 0.6), ([1, 4, 4], 1, 0.2), ([3, 1], 1, 0.45), ([32, 1, 1], 1, 0.3)],
)
def test_who_packs_a_device_and_who_needs_a_whole_one_take_turns(packs: list[int], devices: int, least: float) -> None:
    claims = [claim(str(place), per_device=many) for place, many in enumerate(packs)]
    got = simulated(claims, devices, 100)
    assert min(got[one.study] for one in claims) >= least * 100 * TICKS


def test_fifty_studies_on_two_devices_all_get_their_turns() -> None:
    got = simulated([claim(f"study-{n}", wanted=1) for n in range(50)], 2, 100)
    assert len(got) == 50
    assert min(got.values()) >= 3 * TICKS
    assert max(got.values()) <= 5 * TICKS


def test_even_the_lowest_priority_beside_the_highest_gets_a_turn() -> None:
    got = simulated([claim("urgent", priority=100), claim("someday", priority=-100)], 1, 3 * MOST_SLICES)
    assert got["someday"] >= 2 * TICKS


claims_of = st.lists(
    st.builds(
        lambda owner, priority, wanted, held, per_device, since: claim(
            "?", held, owner=owner, priority=priority, wanted=wanted, per_device=per_device, since=since
        ),
        st.sampled_from(["alice", "bob", "carol"]),
        st.integers(-100, 100),
        st.integers(0, 6),
        st.integers(0, 3),
        st.sampled_from([1, 2, 4]),
        st.floats(0, 10 * SLICE),
    ),
    min_size=1,
    max_size=8,
).map(lambda found: [replace(each, study=f"s{place}") for place, each in enumerate(found)])
owners = st.dictionaries(st.sampled_from(["alice", "bob"]), st.floats(0.01, 100))


def devices_taken(claims: Sequence[Claim], trials: dict[str, int]) -> Fraction:
    return sum((trials[each.study] * each.size for each in claims), Fraction(0))


@given(claims_of, st.integers(0, 8), owners)
def test_no_more_is_given_than_there_is(claims: list[Claim], devices: int, weights: dict[str, float]) -> None:
    found = divide(claims, devices, SLICE, weights)
    assert devices_taken(claims, {study: share.trials for study, share in found.items()}) <= devices
    held = {each.study: each.need.held for each in claims}
    at_most = {study: max(held[study], share.now) for study, share in found.items()}
    assert devices_taken(claims, at_most) <= max(Fraction(devices), devices_taken(claims, held))
    for each in claims:
        share = found[each.study]
        assert 0 <= share.now <= share.trials <= each.most
        assert 0 <= share.release <= max(0, each.need.held - share.trials)


@given(claims_of, st.integers(0, 8), owners)
def test_nothing_is_left_lying(claims: list[Claim], devices: int, weights: dict[str, float]) -> None:
    alike = [replace(each, need=replace(each.need, per_device=2)) for each in claims]
    found = divide(alike, devices, SLICE, weights)
    assert sum(share.trials for share in found.values()) == min(2 * devices, sum(each.most for each in alike))


@given(claims_of, st.integers(0, 8), owners)
def test_each_has_a_place_while_there_are_enough(claims: list[Claim], devices: int, weights: dict[str, float]) -> None:
    working = [each for each in claims if each.most]
    if sum(each.size for each in working) <= devices:
        found = divide(claims, devices, SLICE, weights)
        assert all(found[each.study].trials >= 1 for each in working)


@given(claims_of, st.integers(1, 8), owners)
def test_shares_settle_and_then_stay(claims: list[Claim], devices: int, weights: dict[str, float]) -> None:
    """Everybody does as told, and wants what they wanted: after a few rounds nothing moves any more within a slice."""
    states = [replace(each, need=replace(each.need, wanted=each.most), since=each.since) for each in claims]
    for _ in range(60):
        found = divide(states, devices, SLICE, weights)
        following = []
        for state in states:
            share, need = found[state.study], state.need
            held = max(need.held - share.release, min(share.now, need.wanted))
            since = state.since if (held > 0) == (need.held > 0) else 0.0
            following.append(replace(state, need=replace(need, held=held), since=since))
        if following == states:
            break
        states = following
    else:
        raise AssertionError("it never settles")
    for state in states:
        assert found[state.study].release == 0
