"""`dr backup expire`: what goes, why the rest stays, what it refuses. The archive is made up: no server is needed."""

from pathlib import Path

import pytest

from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.locks import hold
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock
from tests.cli.conftest import PLAN, Dr
from tests.made_up import MadeUpArchive


@pytest.fixture
def made_up(dr: Dr) -> MadeUpArchive:
    """Three backups of the last spring, and the log from before the first on."""
    repository = open_repository(str(dr.folder / "repository"), settings=Settings(), create=True)
    store = repository.service("database").child("7340000000000000001")
    assert isinstance(store, FolderStore)
    archive = MadeUpArchive(store)
    archive.segments(*range(3, 25))
    for minutes in (5, 12, 20):
        archive.backup(minutes, minutes - 1, minutes)
    return archive


@pytest.fixture
def expire(dr: Dr, made_up: MadeUpArchive) -> Dr:
    return Dr({**dr.environment, "DR_REPOSITORY": str(dr.folder / "repository"), "DR_PLAN": str(PLAN)}, dr.folder)


def held(folder: Path) -> dict[str, int]:
    """The repository's objects but the locks and tombstones, with their sizes."""
    files = [path for path in folder.rglob("*") if path.is_file() and "locks" not in path.parts]
    return {str(path): path.stat().st_size for path in files if b'"abandoned":true' not in path.read_bytes()}


def test_it_says_what_goes_and_why_the_rest_stays_and_frees_what_it_said(expire: Dr) -> None:
    before = held(expire.folder / "repository")

    foreseen = expire("backup", "expire", "database", "--keep", "1", "--dry-run", "--json")
    assert held(expire.folder / "repository") == before
    done = expire("backup", "expire", "database", "--keep", "1", "--json")

    after = held(expire.folder / "repository")
    assert (foreseen.code, done.code) == (0, 0), done.err
    (entry,) = done.document["expiries"]
    assert foreseen.document == {**done.document, "dry_run": True}
    assert [(each["stays"], each["why"]) for each in entry["backups"]] == [
        (True, "full backup 1 of 1"),
        (False, "not kept by the newest full backup"),
        (False, "not kept by the newest full backup"),
    ]
    assert entry["log_files"] == 16
    assert entry["freed_bytes"] == sum(before.values()) - sum(after.values())
    listed = expire("backup", "list", "--json").document["backups"]
    assert [each["backup_id"] for each in listed] == [entry["backups"][0]["backup_id"]]


def test_for_a_person_it_is_a_table(expire: Dr) -> None:
    done = expire("backup", "expire", "database", "--keep-for", "30d", "--dry-run")

    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "database, kept: 30d"
    assert "stays" in lines[2] and "leads to 30d ago" in lines[2]
    assert "goes" in lines[3] and "goes" in lines[4]
    assert "log: 16 files go, 000000010000000000000003 to 000000010000000000000012" in done.out
    assert lines[-1] == "nothing was removed: this was a dry run"


def test_without_options_it_does_what_the_plan_says_for_every_database(expire: Dr) -> None:
    done = expire("backup", "expire", "--json")

    (entry,) = done.document["expiries"]
    assert entry["service"] == "database"
    assert entry["retention"] == {"keep": 7, "keep_for_seconds": 30 * 86400}
    assert all(each["stays"] for each in entry["backups"])


def test_a_damaged_backup_is_told_of_and_stays(expire: Dr) -> None:
    newest = max((expire.folder / "repository").rglob("manifest.json"))
    newest.write_bytes(newest.read_bytes()[:-20])

    done = expire("backup", "expire", "database", "--keep", "1", "--json")

    (entry,) = done.document["expiries"]
    assert [each["stays"] for each in entry["backups"]] == [True, True, False]
    assert newest.exists()
    assert f"{newest.parent.name} is not good" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["database", "--keep", "0"], "would leave nothing to restore from"),
        (["database", "--keep", "all"], "--keep"),
        (["database", "--keep-for", "30"], "is not a duration"),
        (["database", "--keep-for", "0s"], "no time at all"),
        (["--keep", "3"], "for one service"),
        (["databse"], "there is no service"),
        (["redis"], "no PostgreSQL service"),
    ],
)
def test_what_cannot_be_meant_is_refused(expire: Dr, arguments: list[str], said: str) -> None:
    before = held(expire.folder / "repository")

    done = expire("backup", "expire", *arguments)

    assert done.code == 2
    assert said in done.err and "Traceback" not in done.err
    assert held(expire.folder / "repository") == before


def test_without_a_retention_nothing_goes(expire: Dr) -> None:
    plan = expire.folder / "plan.yaml"
    text = PLAN.read_text()
    plan.write_text(text.replace("      retention:\n        keep: 7\n        keep_for: 30d\n", ""))

    for arguments in ([], ["database"]):
        done = expire("backup", "expire", *arguments, DR_PLAN=plan)
        assert done.code == 2
        assert "keep" in done.err


def test_while_a_backup_is_made_it_fails_and_names_the_holder(expire: Dr, made_up: MadeUpArchive) -> None:
    home = open_repository(str(expire.folder / "repository"), settings=Settings()).service("database")
    with hold(home, "backup", purpose="full backup of database", clock=SystemClock()):
        done = expire("backup", "expire", "database", "--keep", "1", "--json")

    assert (done.code, done.document["error"]["code"]) == (1, "locked")
    assert "full backup of database" in done.document["error"]["message"]
