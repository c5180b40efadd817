"""What the operator decides, and which paths a person may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpsearch.errors import InvalidInput, PathNotAllowed
from hpsearch.settings import Settings


@pytest.fixture
def roots(tmp_path: Path) -> Settings:
    """Two allowed roots and a home; a secret beside them, and links that lead to it."""
    for folder in ("one", "two", "home", "one-secret"):
        (tmp_path / folder).mkdir()
    (tmp_path / "secret.jsonl").write_text("secret")
    (tmp_path / "one-secret" / "a.jsonl").write_text("secret")
    (tmp_path / "one" / "a.jsonl").write_text("one")
    (tmp_path / "two" / "a.jsonl").write_text("two")
    (tmp_path / "two" / "b.jsonl").write_text("two")
    (tmp_path / "one" / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (tmp_path / "one" / "linked").symlink_to(tmp_path)
    (tmp_path / "one" / "inside.jsonl").symlink_to(tmp_path / "two" / "b.jsonl")
    (tmp_path / "one" / "loop").symlink_to(tmp_path / "one" / "loop")
    return Settings(home=tmp_path / "home", allowed_roots=(tmp_path / "one", tmp_path / "two"))


def test_a_relative_path_is_looked_up_below_each_root_in_order(roots: Settings, tmp_path: Path) -> None:
    assert roots.locate("a.jsonl", "data.train") == tmp_path / "one" / "a.jsonl"
    assert roots.locate("b.jsonl", "data.train") == tmp_path / "two" / "b.jsonl"


def test_an_absolute_path_below_a_root_is_taken(roots: Settings, tmp_path: Path) -> None:
    assert roots.locate(str(tmp_path / "two" / "a.jsonl"), "data.train") == tmp_path / "two" / "a.jsonl"


def test_the_home_is_always_a_root(roots: Settings, tmp_path: Path) -> None:
    (tmp_path / "home" / "c.jsonl").write_text("home")
    assert roots.locate("c.jsonl", "data.train") == tmp_path / "home" / "c.jsonl"


@pytest.mark.parametrize("path", ["missing.jsonl", "missing/../a/b.jsonl", "%2e%2e/secret.jsonl", "a.jsonl/b"])
def test_what_is_not_there_is_none(roots: Settings, path: str) -> None:
    assert roots.locate(path, "data.train") is None


@pytest.mark.parametrize(
    "path",
    [
        "../secret.jsonl",
        "linked/../../secret.jsonl",
        "./../secret.jsonl",
        "a/../../secret.jsonl",
        "../one-secret/a.jsonl",
        "{tmp}/secret.jsonl",
        "{tmp}/one/../secret.jsonl",
        "{tmp}/one-secret/a.jsonl",
        "/etc/passwd",
        "/",
        "//etc/passwd",
        "~/a.jsonl",
        "~root/a.jsonl",
        "a\x00.jsonl",
        "file:///etc/passwd",
        "http://127.0.0.1/a.jsonl",
        "s3://bucket/a.jsonl",
    ],
)
def test_a_path_that_leads_outside_is_refused_with_its_field(roots: Settings, tmp_path: Path, path: str) -> None:
    with pytest.raises(PathNotAllowed) as refused:
        roots.locate(path.replace("{tmp}", str(tmp_path)), "data.train")
    assert refused.value.field == "data.train"


@pytest.mark.parametrize("path", ["link.jsonl", "linked/secret.jsonl", "linked/one-secret/a.jsonl"])
def test_a_link_that_leads_outside_is_never_followed(roots: Settings, path: str) -> None:
    try:
        located = roots.locate(path, "data.train")
    except PathNotAllowed:
        return
    assert located is None


def test_a_link_from_one_root_into_another_finds_no_way_out(roots: Settings, tmp_path: Path) -> None:
    assert roots.locate("inside.jsonl", "data.train") in (None, tmp_path / "two" / "b.jsonl")


@pytest.mark.parametrize("path", ["loop", "loop/a.jsonl", "x" * 1000, "/".join(["x" * 200] * 30)])
def test_a_path_that_no_file_system_can_follow_is_not_there(roots: Settings, path: str) -> None:
    assert roots.locate(path, "data.train") is None


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPSEARCH_HOME", str(tmp_path))
    monkeypatch.setenv("HPSEARCH_ALLOWED_ROOTS", f"{tmp_path}/a::{tmp_path}/b")
    monkeypatch.setenv("HPSEARCH_LEASE_SECONDS", "5")
    settings = Settings()
    assert settings.roots == (tmp_path / "a", tmp_path / "b", tmp_path)
    assert settings.lease_seconds == 5
    assert settings.sql_url == f"sqlite:///{tmp_path}/hpsearch.db"


def test_an_empty_list_of_roots_is_no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPSEARCH_ALLOWED_ROOTS", "")
    assert Settings().allowed_roots == ()


def test_relative_folders_become_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Settings(home=Path("home"), allowed_roots=(Path("data"),))
    assert settings.roots == (tmp_path / "data", tmp_path / "home")


@pytest.mark.parametrize(("name", "value"), [("lease_seconds", 0), ("max_upload_bytes", 1)])
def test_a_setting_that_can_not_work_is_refused(name: str, value: int) -> None:
    with pytest.raises(InvalidInput, match=f"HPSEARCH_{name.upper()}: "):
        Settings(**{name: value})


def test_the_home_is_private(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "new" / "home")
    settings.prepare_home()
    settings.prepare_home()
    for folder in (settings.home, settings.datasets_folder, settings.artifacts_folder):
        assert folder.stat().st_mode & 0o777 == 0o700
