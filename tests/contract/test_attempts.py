"""A trial's attempts: each goes on where the one before it stood, and one that was thought dead harms nobody."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetune_reference import a_config
from safetensors import SafetensorError

from hpsearch.errors import DiskFull, OutdatedCheckpoint, WorkerLost
from hpsearch.finetune import Member, prepare, snapshot
from hpsearch.finetune.attempts import Attempt, telling_disk_full
from hpsearch.raytune.messages import failed
from hpsearch.results import Failure


@pytest.fixture
def trained() -> Member:
    member = Member(a_config(), prepare(a_config()))
    for _ in range(3):
        member.advance()
    return member


def fresh(like: Member) -> Member:
    return Member(like.config, like.prepared)


def test_an_attempt_goes_on_from_the_last_one_and_then_keeps_its_own_place_only(trained, tmp_path):
    Attempt(tmp_path, 1).keep(trained)
    second = Attempt(tmp_path, 2)
    member = fresh(trained)
    assert second.go_on(member, reported=None)
    assert member.steps == trained.steps
    second.keep(member)
    assert [folder.name for folder in tmp_path.iterdir()] == ["2"]
    third = fresh(trained)
    assert Attempt(tmp_path, 3).go_on(third, reported=None)  # the second died before it wrote again
    assert third.steps == trained.steps


def test_an_attempt_that_was_thought_dead_writes_nothing_once_it_was_overtaken_or_the_trial_has_ended(
    trained, tmp_path
):
    dead = Attempt(tmp_path / "trial", 1)
    dead.keep(trained)
    second = Attempt(tmp_path / "trial", 2)
    second.keep(trained)
    dead.keep(trained)
    assert [folder.name for folder in (tmp_path / "trial").iterdir()] == ["2"]
    snapshot.remove(tmp_path / "trial" / "2")
    (tmp_path / "trial" / "2").rmdir()
    (tmp_path / "trial").rmdir()
    second.keep(trained)
    assert list(tmp_path.iterdir()) == []


def test_an_attempt_that_was_thought_dead_does_not_write_the_result(trained, tmp_path):
    """Such as on a machine that was frozen: the result may be that of the attempt that went on by then."""
    while trained.best is None:
        trained.advance()
    dead, second = (Attempt(tmp_path / "trial", number) for number in (1, 2))
    second.keep_best(trained, tmp_path / "adapter")
    written = sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "adapter").iterdir())
    second.keep(trained)
    with pytest.raises(WorkerLost, match="this attempt is over"):
        dead.keep_best(trained, tmp_path / "adapter")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in (tmp_path / "adapter").iterdir()) == written


def test_what_was_trained_and_can_not_be_continued_is_lost_with_its_reason(trained, tmp_path):
    assert not Attempt(tmp_path / "new", 1).go_on(fresh(trained), reported=None)
    assert not Attempt(tmp_path / "baseline", 2).go_on(fresh(trained), reported=0)
    with pytest.raises(WorkerLost, match="there is no checkpoint"):
        Attempt(tmp_path / "gone", 2).go_on(fresh(trained), reported=20)
    Attempt(tmp_path / "other", 1).keep(trained)
    other = a_config(seed=5)
    with pytest.raises(WorkerLost, match="seed is 0 there and 5 here"):
        Attempt(tmp_path / "other", 2).go_on(Member(other, prepare(other)), reported=20)


def test_a_dear_snapshot_is_written_seldom(trained, tmp_path, monkeypatch):
    attempt = Attempt(tmp_path, 1)
    monkeypatch.setattr(trained, "snapshot_bytes", lambda: 10**12)
    attempt.keep_if_due(trained)
    assert snapshot.read(tmp_path / "1") is None
    cheap = Attempt(tmp_path, 2)
    monkeypatch.setattr(trained, "snapshot_bytes", lambda: 1)
    cheap.keep_if_due(trained)
    assert snapshot.read(tmp_path / "2") is not None


def test_a_full_disk_is_told_whoever_notices():
    with pytest.raises(DiskFull, match="no space left"), telling_disk_full():
        Path("/dev/full").write_bytes(b"1")
    with pytest.raises(DiskFull, match="no space left"), telling_disk_full():
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), telling_disk_full():
        raise SafetensorError("Error while serializing: invalid shape")


def test_a_checkpoint_of_another_version_is_nobodys_fault(trained, tmp_path, monkeypatch):
    with monkeypatch.context() as before_the_upgrade:
        before_the_upgrade.setattr(snapshot, "VERSION", "1")
        Attempt(tmp_path, 1).keep(trained)
    with pytest.raises(OutdatedCheckpoint, match="another version") as raised:
        Attempt(tmp_path, 2).go_on(fresh(trained), reported=4)
    assert failed(raised.value).failure is Failure.OUTDATED_CHECKPOINT
    assert not Attempt(tmp_path, 3).go_on(fresh(trained), reported=0), "it has lost nothing, and begins anew"
