"""What examples begin with in common is read once, and nothing comes out differently."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from finetune_reference import a_config
from hypothesis import given
from hypothesis import strategies as st

from hpsearch.finetune import Member, prepare
from hpsearch.finetune import step as steps
from hpsearch.finetune.batches import SHARED_COST, Layout, MicroBatch, Share, micro_batches
from hpsearch.finetune.prefixes import LEAST_SHARED, MOST_COMPARED, alike, best_runs
from hpsearch.finetune.step import gradients
from hpsearch.finetune.tokenised import TokenisedSplit

PACKED = Layout(packs=True, device=torch.device("cpu"))


def a_split(examples: Sequence[Sequence[int]]) -> TokenisedSplit:
    """Even tokens are completions."""
    offsets = np.cumsum([0, *map(len, examples)]).astype(np.int64)
    ids = np.array(list(itertools.chain(*examples)), dtype=np.int32)
    marks = ids % 2 == 0
    counts = np.array([marks[start + 1 : end].sum() for start, end in itertools.pairwise(offsets)], dtype=np.int64)
    return TokenisedSplit(ids, marks, offsets, counts, counts, counts > 9, 0, 0, 0)


def planted(seed: int, beginnings: Sequence[int], rows: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Examples that begin with the whole of one of several beginnings, of which the later go on from the first ones."""
    random = np.random.default_rng(seed)
    known = [list(random.integers(3, 900, length)) for length in beginnings]
    known += [known[0] + each for each in known[1:]]
    return [
        [int(token) for token in (*known[which % len(known)], *random.integers(3, 900, own))] or [7]
        for which, own in rows
    ]


some_examples = st.builds(
    planted,
    st.integers(0, 99),
    st.lists(st.sampled_from([0, 3, LEAST_SHARED - 1, LEAST_SHARED, 25, 60]), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0, 1, 4, 4, 9])), min_size=1, max_size=9),
)


@given(st.lists(st.sampled_from([0, 15, 16, 17, 30, 31]), max_size=7))
def test_no_other_runs_save_more(shared):
    count = len(shared) + 1

    def saved(depth: int, start: int, end: int) -> int:
        return depth * (end - start - 1)

    def possible(start: int) -> Iterator[int]:
        """What each way of cutting the rest saves."""
        if start == count:
            yield 0
        for end in range(start + 1, count + 1):
            depth = min(shared[start : end - 1], default=0)
            for rest in possible(end):
                yield rest + (saved(depth, start, end) if depth >= LEAST_SHARED else 0)

    runs = best_runs(shared)
    assert [start for _, start, _ in runs] == [0, *(end for _, _, end in runs[:-1])]
    assert runs[-1][2] == count
    for depth, start, end in runs:
        assert (depth == 0) == (end == start + 1)
        assert depth == 0 or LEAST_SHARED <= depth <= min(shared[start : end - 1])
    assert sum(saved(*run) for run in runs) == max(possible(0))


@given(some_examples)
def test_examples_that_are_put_together_begin_alike(examples):
    split = a_split(examples)
    groups = alike(split.examples)
    assert sorted(place for group in groups for place in group.places) == list(range(len(examples)))
    for group in groups:
        assert len({tuple(examples[place][: group.shared]) for place in group.places}) <= 1 or not group.shared
        assert all(len(examples[place]) >= group.shared for place in group.places)
        assert group.shared == 0 or (group.shared >= LEAST_SHARED and len(group.places) > 1)


def test_a_token_that_is_learned_from_in_one_example_only_is_not_shared():
    split = a_split([[9] * 40, [9] * 40, [9] * 40])
    split.completion[40 + 5] = True
    assert [(group.shared, group.places) for group in alike(split.examples)] == [(40, (0, 2)), (0, (1,))]
    split.completion[40 + 5], split.completion[40 + 30] = False, True
    assert [(group.shared, set(group.places)) for group in alike(split.examples)] == [(30, {0, 1, 2})]


def test_very_many_examples_are_compared_some_at_a_time():
    examples = [[5] * 20 + [number] for number in range(2 * MOST_COMPARED + 1)]
    groups = alike(a_split(examples).examples)
    assert [(group.shared, len(group.places)) for group in groups] == [(20, MOST_COMPARED)] * 2 + [(0, 1)]
    assert sorted(place for group in groups for place in group.places) == list(range(len(examples)))


def sequences(batch: MicroBatch) -> list[list[int]]:
    """Of each example, where its tokens stand in the row."""
    found, place = [], 0
    for group in batch.groups:
        beginning, place = list(range(place, place + group.shared)), place + group.shared
        for own in group.own:
            found.append([*beginning, *range(place, place + own)])
            place += own
    assert place == batch.ids.numel()
    return found


@given(st.lists(st.tuples(some_examples, st.booleans(), st.booleans()), min_size=1, max_size=3), st.integers(1, 300))
def test_micro_batches_hold_every_example_and_predict_each_token_from_the_one_before_it(given_shares, budget):
    shares = [Share(a_split(examples).examples, prompts, once) for examples, prompts, once in given_shares]
    read = [Counter[tuple[int, ...]]() for _ in shares]
    numbers = dict[tuple[int, ...], int]()
    for batch in micro_batches(shares, budget, PACKED):
        ids, positions = batch.ids[0].tolist(), batch.positions[0].tolist()
        predictions = Counter[tuple[int, int, bool]]()
        own, found = [tuple(map(ids.__getitem__, each)) for each in sequences(batch)], sequences(batch)
        starts = [part.tokens for part in batch.parts]
        for example, places in zip(own, found, strict=True):
            assert [positions[place] for place in places] == list(range(len(places)))
            (share,) = {
                part.share for part in batch.parts if part.tokens[0] <= places[0] and places[-1] < part.tokens[1]
            }
            read[share][example] += 1
            for end, place in enumerate(places, 1):
                assert numbers.setdefault(example[:end], int(batch.tokens[place])) == batch.tokens[place]
            for before, token in itertools.pairwise(places):
                if shares[share].prompts or ids[token] % 2 == 0:
                    predictions[before, ids[token], ids[token] % 2 == 0] += 1
        listed = zip(batch.places.tolist(), batch.targets.tolist(), batch.completion.tolist(), strict=True)
        counted = Counter[tuple[int, int, bool]]()
        for prediction, count in zip(listed, batch.counts.tolist(), strict=True):
            counted[prediction] += count
        assert counted == predictions
        assert [start for start, _ in starts] == [0, *(end for _, end in starts[:-1])]
        for part in batch.parts:
            held = batch.places[slice(*part.predictions)].tolist()
            assert all(part.tokens[0] <= place < part.tokens[1] for place in held)
        assert len(own) == 1 or batch.ids.numel() <= budget
        again = sum(group.shared // SHARED_COST * len(group.own) for group in batch.groups if group.shared)
        assert len(own) == 1 or batch.ids.numel() + again <= budget
    assert read == [Counter(map(tuple, examples)) for examples, _, _ in given_shares]
    assert len(set(numbers.values())) == len(numbers)
    for (_, _, once), each in zip(given_shares, shares, strict=True):
        if not once:
            assert all(not group.shared for batch in micro_batches([each], budget, PACKED) for group in batch.groups)


@given(st.lists(some_examples, min_size=1, max_size=4), st.integers(1, 400))
def test_a_share_that_fits_stays_whole(given_shares, budget):
    shares = [Share(a_split(examples).examples, prompts=True) for examples in given_shares]
    cut = [[part.share for part in batch.parts] for batch in micro_batches(shares, budget, PACKED)]
    for number, share in enumerate(shares):
        if sum(map(len, share.examples)) <= budget:
            assert sum(number in parts for parts in cut) == 1


@pytest.mark.parametrize(("method", "dropout"), [("lora", 0.0), ("lora", 0.3), ("full", 0.0)])
@pytest.mark.parametrize("prompt_loss_weight", [0.0, 0.3])
def test_gradients_are_those_of_every_example_by_itself(method, dropout, prompt_loss_weight, monkeypatch):
    config = a_config(method=method, data="instructed", prompt_loss_weight=prompt_loss_weight, dropout=dropout)
    prepared = prepare(config)
    read: list[int] = []

    def seen(shares, *args):
        for batch in micro_batches(shares, *args):
            read.append(batch.ids.numel())
            yield batch

    monkeypatch.setattr(steps, "micro_batches", seen)
    found = []
    for once in (True, False):
        monkeypatch.setattr("hpsearch.finetune.weights.LoraWeights.reads_alike", once)
        monkeypatch.setattr("hpsearch.finetune.weights.FullWeights.reads_alike", once)
        member = Member(config, prepared)
        turn = replace(member.turn(), examples=list(prepared.train.examples[:12]))
        (nll,) = gradients(prepared.loaded, [turn], 10**6)
        found.append((float(nll), [parameter.grad.clone() for parameter in member.weights.named.values()]))
    assert read[0] < 0.7 * read[1] == 0.7 * turn.tokens
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, two in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("method", "read_once"), [("lora", True), ("full", False)])
def test_only_the_dropout_inside_of_models_is_every_examples_own(method, read_once, monkeypatch):
    config = a_config(method=method, data="instructed", dropout=0.1, batch_size=8)
    member, given_shares = Member(config, prepare(config)), []
    monkeypatch.setattr(steps, "micro_batches", lambda shares, *_: given_shares.extend(shares) or ())
    gradients(member.prepared.loaded, [member.turn()], 1000)
    assert [share.once for share in given_shares] == [read_once]
