"""An overlay reads two places as one, and never writes to the one below."""

from pathlib import Path

import pytest

from dr_pipelines.errors import ObjectMissing, RepositoryError
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.overlay import Overlay
from dr_pipelines.repository.probe import check_writable


@pytest.fixture
def base(tmp_path: Path) -> FolderStore:
    (tmp_path / "base").mkdir()
    store = FolderStore(tmp_path / "base")
    store.put("a/1", [b"base one"])
    store.put("a/2", [b"base two"])
    return store


@pytest.fixture
def overlay(base: FolderStore, tmp_path: Path) -> Overlay:
    (tmp_path / "layer").mkdir()
    return Overlay(base, FolderStore(tmp_path / "layer"))


def test_what_is_below_is_read(overlay: Overlay) -> None:
    assert overlay.get("a/1") == b"base one"
    assert overlay.child("a").names("") == ["1", "2"]


def test_what_is_put_is_read_back_and_is_not_below(overlay: Overlay, base: FolderStore) -> None:
    overlay.child("a").put("3", [b"new"])

    assert overlay.get("a/3") == b"new"
    assert base.info("a/3") is None
    assert [found.key for found in overlay.list("a/")] == ["a/1", "a/2", "a/3"]


def test_what_is_put_over_an_object_hides_it_and_is_listed_once(overlay: Overlay, base: FolderStore) -> None:
    overlay.put("a/1", [b"changed here"])

    assert overlay.get("a/1") == b"changed here"
    assert base.get("a/1") == b"base one"
    assert [(found.key, found.size) for found in overlay.list("")] == [("a/1", 12), ("a/2", 8)]


def test_an_object_below_is_there_for_put_if_absent(overlay: Overlay) -> None:
    assert not overlay.put_if_absent("a/1", [b"other"])
    assert overlay.put_if_absent("a/3", [b"new"])


def test_deleting_touches_nothing_below(overlay: Overlay) -> None:
    overlay.delete("a/1")

    assert overlay.get("a/1") == b"base one"


def test_what_is_nowhere_is_missing(overlay: Overlay) -> None:
    with pytest.raises(ObjectMissing):
        overlay.get("a/4")


def test_the_probe_leaves_nothing_behind(base: FolderStore) -> None:
    check_writable(base)

    assert base.names("") == ["a/"]


def test_the_probe_finds_a_store_that_takes_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(RepositoryError):
        check_writable(FolderStore(tmp_path / "file"))
