"""How several studies share a cluster's devices: a pure function of what each has use for and of what it holds.

- While the devices have room for one trial of each study, each study may hold at least one.
- What is left goes, trial by trial, to the owner who would then hold least for its weight, and to that owner's study
  that would then hold least for its own. Ten points of priority are twice the weight. What one study has no use for
  goes to the others.
- With more studies than that, they take turns. A turn lasts a slice, or longer where a study's part of the time is more
  than half of it. Then whoever has waited longest for its weight is next, so everybody's turn comes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

DOUBLED_BY = 10
"""So many points of priority are twice the weight."""

MOST_SLICES = 100
"""No turn lasts longer while others wait, however large its weight."""


@dataclass(frozen=True)
class Need:
    """What a study has use for now."""

    wanted: int
    """Trials at once, those that it holds included."""
    held: int
    """Trials that were handed out and have not ended."""
    per_device: int = 1
    """Trials of this study that fill a device."""


@dataclass(frozen=True)
class Claim:
    """A study that is driven now."""

    study: str
    owner: str
    priority: int
    need: Need
    since: float
    """Seconds for which it has held something, or for which it has waited when it holds nothing."""

    @property
    def size(self) -> Fraction:
        """The part of a device that one of its trials takes."""
        return Fraction(1, self.need.per_device)

    @property
    def weight(self) -> float:
        """By its priority."""
        return float(2.0 ** (self.priority / DOUBLED_BY))

    @property
    def most(self) -> int:
        """Trials that it has use for; what runs is of use."""
        return max(self.need.wanted, self.need.held)


@dataclass(frozen=True)
class Share:
    """What a study may hold, in trials."""

    trials: int
    """Once everybody has given back what is not theirs."""
    now: int
    """At this moment; not more than its share, and not what others have yet to give back."""
    release: int = 0
    """So many should give their places to others, once they have run for a slice."""
    need: Need = Need(0, 0)
    """What it was reckoned from."""
    studies: int = 1
    """How many share."""
    devices: int = 0
    """What they share."""

    @property
    def text(self) -> str:
        """For people."""
        what = f"it may hold {_many(self.trials, 'trial', 'trials')}" if self.trials else "it waits for its turn"
        return f"{what}: {_many(self.studies, 'study', 'studies')} on {_many(self.devices, 'device', 'devices')}"


NONE = Share(0, 0)
"""Of a study that nothing is known of yet."""


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"


def divide(
    claims: Sequence[Claim], devices: int, slice_seconds: float, owner_weights: Mapping[str, float]
) -> dict[str, Share]:
    """Each study's share.

    Args:
        claims: All studies that are driven, the oldest first: ties are broken in this order.
        devices: Of the cluster.
        slice_seconds: The shortest turn.
        owner_weights: By owner, more than 0; one who isn't named has 1.
    """
    working = [claim for claim in claims if claim.most > 0]
    held = {claim.study: claim.need.held for claim in working}
    turns = _turns(working, devices, slice_seconds, owner_weights)
    firsts = {claim.study: int(claim in turns) for claim in working}
    most = {claim.study: claim.most * firsts[claim.study] for claim in working}
    trials = _filled(working, firsts, most, devices - _taken(working, firsts), owner_weights)

    room = devices - _taken(working, held)
    now = {study: min(held[study], share) for study, share in trials.items()}
    for limits in ({study: min(1, share) for study, share in trials.items()}, trials):  # who has nothing comes first
        more = _filled(working, now, limits, room, owner_weights)
        room -= _taken(working, more) - _taken(working, now)
        now = more
    release = _released(working, trials, now, room)
    return {
        claim.study: Share(
            trials.get(claim.study, 0),
            now.get(claim.study, 0),
            release.get(claim.study, 0),
            claim.need,
            len(working),
            devices,
        )
        for claim in claims
    }


def _taken(claims: Sequence[Claim], trials: Mapping[str, int]) -> Fraction:
    """Devices, for so many trials of each study."""
    return sum((trials[claim.study] * claim.size for claim in claims), Fraction(0))


def _filled(
    claims: Sequence[Claim],
    trials: Mapping[str, int],
    limits: Mapping[str, int],
    room: Fraction,
    owner_weights: Mapping[str, float],
) -> dict[str, int]:
    """Trials of each study when `room` is given out on top, one by one, up to the studies' limits."""
    given = dict(trials)
    of_owners = dict.fromkeys((claim.owner for claim in claims), Fraction(0))
    for claim in claims:
        of_owners[claim.owner] += given[claim.study] * claim.size
    while True:
        open_ones = [claim for claim in claims if given[claim.study] < limits[claim.study] and claim.size <= room]
        if not open_ones:
            return given
        chosen = _least_served(open_ones, of_owners, given, owner_weights)
        given[chosen.study] += 1
        of_owners[chosen.owner] += chosen.size
        room -= chosen.size


def _least_served(
    open_ones: Sequence[Claim],
    of_owners: Mapping[str, Fraction],
    given: Mapping[str, int],
    owner_weights: Mapping[str, float],
) -> Claim:
    """Whose owner, who has so many devices, and then which itself, would hold least for its weight with one more."""
    priority: dict[str, float] = {}
    for claim in open_ones:  # only what still has use for more gives its owner weight
        priority[claim.owner] = max(priority.get(claim.owner, 0.0), claim.weight)

    def burden(claim: Claim) -> tuple[float, float]:
        of_owner = of_owners[claim.owner] + claim.size
        of_study = (given[claim.study] + 1) * claim.size
        weight = owner_weights.get(claim.owner, 1.0) * priority[claim.owner]
        return float(of_owner) / weight, float(of_study) / claim.weight

    return min(open_ones, key=burden)


def _released(
    claims: Sequence[Claim], trials: Mapping[str, int], now: Mapping[str, int], room: Fraction
) -> dict[str, int]:
    """How many trials each study gives back, so that those below their shares can have them; most from who has most.

    More may be held than there is, which is `room` below 0: what was handed out on shares that have changed meanwhile
    waits in Ray for a device. Those within their shares are not to wait for those above them.
    """
    short = sum(((trials[claim.study] - now[claim.study]) * claim.size for claim in claims), Fraction(0))
    within = [claim for claim in claims if claim.need.held <= trials[claim.study]]
    queued = sum((claim.need.held * claim.size for claim in within), Fraction(0))
    short -= max(room, -queued)
    released = dict.fromkeys(trials, 0)

    def surplus(claim: Claim) -> Fraction:
        return (claim.need.held - trials[claim.study] - released[claim.study]) * claim.size

    while short > 0 and claims:
        giver = max(claims, key=surplus)
        if surplus(giver) <= 0:
            break
        released[giver.study] += 1
        short -= giver.size
    return released


def _turns(
    claims: Sequence[Claim], devices: int, slice_seconds: float, owner_weights: Mapping[str, float]
) -> Sequence[Claim]:
    """The studies that may hold something: all, or those whose turn it is."""
    if sum(claim.size for claim in claims) <= devices:
        return claims
    if devices == 0:
        return ()
    parts = _parts(_as_they_block(claims, devices), devices, owner_weights)

    def order(claim: Claim) -> tuple[int, float]:
        part = parts[claim.study]
        if not claim.need.held:
            return 1, -claim.since / _slices(1 / part - 1)
        is_over = part < 1 and claim.since >= slice_seconds * _slices(part / (1 - part))
        return (2 if is_over else 0), claim.since

    turns, room = [], Fraction(devices)
    for claim in sorted(claims, key=lambda claim: (*order(claim), -parts[claim.study])):
        if claim.size <= room:
            turns.append(claim)
            room -= claim.size
        elif not claim.need.held:  # what fits behind it waits too, or it would never have a whole device
            break
    return turns


def _as_they_block(claims: Sequence[Claim], devices: int) -> Sequence[Claim]:
    """The claims by what they take of each other's time.

    Where somebody's trial does not fit beside those that hold something, whoever goes on holding keeps it from a whole
    device, however little of one it has itself: then a trial of each counts as large as any.
    """
    room = devices - sum((claim.size for claim in claims if claim.need.held), Fraction(0))
    if all(claim.need.held or claim.size <= room for claim in claims):
        return claims
    return [replace(claim, need=replace(claim.need, per_device=1)) for claim in claims]


def _slices(count: float) -> float:
    """So many slices make a turn, or a wait between two."""
    return min(max(1.0, count), MOST_SLICES)


def _parts(claims: Sequence[Claim], devices: int, owner_weights: Mapping[str, float]) -> dict[str, float]:
    """For which part of the time each study should hold one trial, where there are too many: more than 0, at most 1."""
    owners: dict[str, list[Claim]] = {}
    for claim in claims:
        owners.setdefault(claim.owner, []).append(claim)
    wants = {owner: float(sum(claim.size for claim in own)) for owner, own in owners.items()}
    weights = {
        owner: owner_weights.get(owner, 1.0) * max(claim.weight for claim in own) for owner, own in owners.items()
    }
    of_owners = _levelled(wants, weights, float(devices))
    parts: dict[str, float] = {}
    for owner, own in owners.items():
        sizes = {claim.study: float(claim.size) for claim in own}
        amounts = _levelled(sizes, {claim.study: claim.weight for claim in own}, of_owners[owner])
        parts |= {study: amount / sizes[study] for study, amount in amounts.items()}
    return parts


def _levelled(wants: Mapping[str, float], weights: Mapping[str, float], amount: float) -> dict[str, float]:
    """Max-min fair: divided by weight, and what one has no use for goes to the others."""
    parts: dict[str, float] = {}
    for name in sorted(wants, key=lambda name: wants[name] / weights[name]):
        left = sum(weights[other] for other in wants if other not in parts)
        parts[name] = min(wants[name], amount * weights[name] / left)
        amount -= parts[name]
    return parts
