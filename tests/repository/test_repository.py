"""The repository as a whole: recognised, never made by accident, each thing in its place."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dr_pipelines.errors import ConfigurationError, FormatTooNew, ObjectCorrupt, RepositoryError, RepositoryMissing
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock

Place = tuple[str, Settings]


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A URL where nothing is yet, of each kind in turn, and the settings to reach it."""
    if request.param == "folder":
        return str(tmp_path / "new" / "repository"), Settings()
    return request.getfixturevalue("s3_url"), request.getfixturevalue("s3_settings")


@pytest.fixture
def repository(place: Place) -> Repository:
    return open_repository(place[0], settings=place[1], create=True)


def test_a_created_repository_is_opened_again_as_the_same(place: Place) -> None:
    url, settings = place
    made = open_repository(url, settings=settings, create=True, clock=FakeClock())
    assert made.format_version == 1
    for create in (True, False):
        assert open_repository(url, settings=settings, create=create).id == made.id
    root = unseal(made.store.get("dr-repository.json"), what="it")
    assert root == {"format_version": 1, "id": made.id, "created_at": "2026-01-01T00:00:00.000000Z"}


def test_those_who_create_it_at_the_same_time_open_the_same(place: Place) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = pool.map(lambda _: open_repository(place[0], settings=place[1], create=True), range(4))
    assert len({repository.id for repository in opened}) == 1


def test_nothing_is_created_unasked(place: Place, tmp_path: Path) -> None:
    url, settings = place
    with pytest.raises(RepositoryMissing, match="no repository in") as caught:
        open_repository(url, settings=settings)
    assert "DR_REPOSITORY" in caught.value.hint and "dr backup full" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_what_has_other_content_never_becomes_a_repository(repository: Repository, place: Place) -> None:
    store = repository.store
    store.delete("dr-repository.json")
    store.put("holiday/photo.jpg", [b"x"])
    for create in (True, False):
        with pytest.raises(RepositoryMissing, match="not empty: it has holiday/"):
            open_repository(place[0], settings=place[1], create=create)
    assert store.names("") == ["holiday/"]


def test_a_newer_repository_is_refused(repository: Repository, place: Place) -> None:
    repository.store.put("dr-repository.json", [seal({"format_version": 2, "id": "x"})])
    with pytest.raises(FormatTooNew, match="format 2, this version reads up to 1"):
        open_repository(place[0], settings=place[1], create=True)


@pytest.mark.parametrize("data", [b"", b"{}", seal({}), seal({"format_version": "1", "id": "x"})])
def test_a_damaged_root_is_not_made_anew(repository: Repository, place: Place, data: bytes) -> None:
    repository.store.put("dr-repository.json", [data])
    with pytest.raises(ObjectCorrupt, match=r"dr-repository\.json"):
        open_repository(place[0], settings=place[1], create=True)


@pytest.mark.parametrize("url", ["", "s3:///prefix", "ftp://host/path", "https://bucket.example/x", "file://host/path"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        open_repository(url, settings=Settings(), create=True)
    assert "s3://bucket/prefix" in caught.value.hint


def test_a_folder_may_be_given_as_path_or_url(tmp_path: Path) -> None:
    made = open_repository(str(tmp_path / "r"), settings=Settings(), create=True)
    assert open_repository((tmp_path / "r").as_uri(), settings=Settings()).id == made.id


def test_each_service_has_a_place_of_its_own(repository: Repository) -> None:
    repository.service("database").put("7301/x", [b"1"])
    repository.service("cache").put("7301/x", [b"2"])
    assert repository.store.get("services/database/7301/x") == b"1"
    assert repository.services() == ["cache", "database"]
    with pytest.raises(RepositoryError, match="name of a service"):
        repository.service("../drills")


def test_a_sandbox_is_a_repository_of_its_own_and_goes_as_a_whole(repository: Repository) -> None:
    sandbox = repository.sandbox("drill-1")
    assert repository.sandbox("drill-1").id == sandbox.id != repository.id
    sandbox.service("database").put("x", [b"1"])
    sandbox.sandbox("inner").records.put({"record_id": "20260301T120000Z-drill-9f86d0"})
    repository.service("database").put("y", [b"2"])
    other = repository.sandbox("drill-10")
    assert repository.services() == ["database"]
    assert repository.service("database").names("") == ["y"]
    for _ in range(2):
        repository.remove_sandbox("drill-1")
    assert repository.store.names("drills") == ["drill-10/"]
    assert repository.service("database").get("y") == b"2"
    assert repository.sandbox("drill-10").id == other.id
    assert repository.sandbox("drill-1").id != sandbox.id


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../services"])
def test_what_is_no_sandbox_is_not_removed(repository: Repository, name: str) -> None:
    for act in (repository.sandbox, repository.remove_sandbox):
        with pytest.raises(RepositoryError, match="name of a sandbox"):
            act(name)


def test_the_latest_plan_is_remembered_with_those_before_it(repository: Repository) -> None:
    assert repository.latest_plan() is None
    keys = [repository.remember_plan(text) for text in ("plan: 1\n", "plan: ä\n", "plan: ä\n")]
    assert repository.latest_plan() == "plan: ä\n"
    assert repository.store.get(keys[0]) == b"plan: 1\n"
    assert repository.remember_plan("plan: 1\n") == keys[0]
    assert repository.latest_plan() == "plan: 1\n"
    assert len(repository.store.names("plans")) == 3


def test_a_damaged_plan_is_found(repository: Repository, flip: Callable[[Store, str, int], None]) -> None:
    key = repository.remember_plan("plan: 1\n")
    flip(repository.store, key, 0)
    with pytest.raises(ObjectCorrupt, match="copy of the plan"):
        repository.latest_plan()
    flip(repository.store, key, 0)
    flip(repository.store, "plans/current.json", 20)
    with pytest.raises(ObjectCorrupt, match="current plan"):
        repository.latest_plan()
