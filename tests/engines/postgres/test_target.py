"""The target of a restore: refused and untouched, or claimed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres import target
from dr_pipelines.engines.postgres.target import Note
from dr_pipelines.errors import Locked, TargetRefused
from dr_pipelines.processes.identity import Identity, server_identity
from dr_pipelines.settings import Settings
from tests.archived import files_below, open_to_all

MINE = Note("20260301T120000Z-restore-abcdef", "20260301T030000Z-full-abcdef", "1")
ANOTHERS = Note("20260301T130000Z-restore-abcdef", "20260301T030000Z-full-abcdef", "1")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="as a user, servers run as that user")


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_to_all() as folder:
        yield folder


@pytest.fixture
def identity() -> Identity | None:
    return server_identity(Settings())


@contextmanager
def elsewhere(place: Path) -> Iterator[None]:
    """Another process holds the target, and is killed in the end; raises Locked where it does not get it."""
    script = (
        "import sys, pathlib; from dr_pipelines.engines.postgres import target\n"
        "from dr_pipelines.errors import Locked\n"
        "try: target.hold(pathlib.Path(sys.argv[1]), None)\n"
        "except Locked as error: sys.exit(print(error))\n"
        "print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(place)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        if (said := child.stdout.readline().strip()) != "held":
            raise Locked(said)
        try:
            yield
        finally:
            child.kill()


def refused(place: Path, identity: Identity | None, words: str) -> None:
    """The claim is refused with these words, and nothing there has changed."""
    before = files_below(place.parent)
    with pytest.raises(TargetRefused, match=words):
        target.claim(place, MINE, identity)
    assert files_below(place.parent) == before


class TestRefused:
    def test_a_folder_that_is_not_empty(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data").mkdir()
        (folder / "data" / "mine").write_text("precious")
        refused(folder / "data", identity, "is not empty")

    def test_the_data_directory_of_a_server_that_runs(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data").mkdir()
        (folder / "data" / "postmaster.pid").write_text("1\n")
        refused(folder / "data", identity, "a server that runs")

    def test_a_file(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data").write_text("precious")
        refused(folder / "data", identity, "is not a folder")

    def test_a_link_to_an_empty_folder(self, folder: Path, identity: Identity | None) -> None:
        (folder / "elsewhere").mkdir()
        (folder / "data").symlink_to(folder / "elsewhere")
        refused(folder / "data", identity, "is a link")

    def test_a_link_that_leads_nowhere(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data").symlink_to(folder / "nowhere")
        refused(folder / "data", identity, "is a link")

    def test_a_relative_path(self, identity: Identity | None) -> None:
        with pytest.raises(TargetRefused, match="not an absolute path"):
            target.claim(Path("data"), MINE, identity)

    @as_root
    def test_a_folder_that_the_server_cannot_get_to(self, folder: Path, identity: Identity | None) -> None:
        (folder / "private").mkdir(mode=0o700)
        refused(folder / "private" / "new" / "data", identity, "cannot enter .*private")

    def test_what_another_execution_has_claimed(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", ANOTHERS, identity)
        refused(folder / "data", identity, ANOTHERS.execution_id)

    def test_a_note_that_cannot_be_read(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        (folder / "data" / target.PRIVATE / "restore.json").write_text("{")
        refused(folder / "data", identity, "cannot be read")

    def test_a_folder_called_as_ours_with_something_in_it(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data" / target.PRIVATE).mkdir(parents=True)
        (folder / "data" / target.PRIVATE / "mine").write_text("precious")
        refused(folder / "data", identity, "is not empty")


class TestClaimed:
    @pytest.mark.parametrize("name", ["data", "new/folders/above/data"])
    def test_a_new_folder(self, folder: Path, identity: Identity | None, name: str) -> None:
        place = folder / name
        assert target.claim(place, MINE, identity) is False
        assert place.stat().st_mode & 0o777 == 0o700
        assert place.stat().st_uid == (identity.uid if identity else os.geteuid())
        assert target.read_note(place) == MINE

    def test_an_empty_folder(self, folder: Path, identity: Identity | None) -> None:
        (folder / "data").mkdir(mode=0o755)
        assert target.claim(folder / "data", MINE, identity) is False
        assert (folder / "data").stat().st_mode & 0o777 == 0o700

    def test_again_by_the_same_execution(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        (folder / "data" / "PG_VERSION").write_text("18\n")
        assert target.claim(folder / "data", MINE, identity) is True
        assert (folder / "data" / "PG_VERSION").exists()

    @pytest.mark.parametrize("left", [[], [".restore.json.1234"]], ids=["before its note", "within its note"])
    def test_what_a_claim_that_was_killed_had_begun(
        self, folder: Path, identity: Identity | None, left: list[str]
    ) -> None:
        private = folder / "data" / target.PRIVATE
        private.mkdir(parents=True, mode=0o700)
        for name in left:
            (private / name).write_text('{"exec')
        assert target.claim(folder / "data", MINE, identity) is False
        assert target.read_note(folder / "data") == MINE


class TestLock:
    def test_whoever_claimed_it_holds_it_and_passes_again(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        target.hold(folder / "data", identity)
        with pytest.raises(Locked, match="another process is restoring"), elsewhere(folder / "data"):
            pass

    def test_of_a_killed_process_is_free_at_once(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        target.let_go(folder / "data")
        with elsewhere(folder / "data"), pytest.raises(Locked):
            target.claim(folder / "data", MINE, identity)
        assert target.claim(folder / "data", MINE, identity) is True

    def test_of_a_target_that_was_removed_is_taken_anew(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        shutil.rmtree(folder / "data")
        assert target.claim(folder / "data", MINE, identity) is False
        with pytest.raises(Locked), elsewhere(folder / "data"):
            pass


class TestHandOver:
    """The restored server is about to take the lost one's place."""

    def test_keeps_the_note_and_the_lock_alone_and_does_so_again(self, folder: Path, identity: Identity | None) -> None:
        place = folder / "data"
        target.claim(place, MINE, identity)
        for name in ("server.log", "parts"):
            (place / target.PRIVATE / name).touch()
        (place / target.PRIVATE / "wal").mkdir()
        (place / target.ACCESS_RULES).touch()
        for _ in range(2):
            target.hand_over(place, identity)
            assert sorted(path.name for path in (place / target.PRIVATE).iterdir()) == ["lock", "restore.json"]
            assert not (place / target.ACCESS_RULES).exists()
        note = target.read_note(place)
        assert note is not None and note.taken_over and note.execution_id == MINE.execution_id

    def test_no_restore_goes_on_with_it_any_more(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        target.hand_over(folder / "data", identity)
        refused(folder / "data", identity, "takes the lost one's place")


class TestRelease:
    def test_removes_all_that_the_restore_kept(self, folder: Path, identity: Identity | None) -> None:
        target.claim(folder / "data", MINE, identity)
        (folder / "data" / target.ACCESS_RULES).touch()
        target.release(folder / "data", server_runs=False)
        assert list((folder / "data").iterdir()) == []

    def test_leaves_what_a_server_that_runs_needs(self, folder: Path, identity: Identity | None) -> None:
        place = folder / "data"
        target.claim(place, MINE, identity)
        private = place / target.PRIVATE
        for name in ("server.log", "access.json", "verified.json", "parts"):
            (private / name).touch(mode=0o000)
        (private / "wal").mkdir()
        (place / target.ACCESS_RULES).touch()
        target.release(place, server_runs=True)
        left = {path.name: path.stat() for path in private.iterdir()}
        assert set(left) == {"server.log"}
        assert (place / target.ACCESS_RULES).exists()
        assert {state.st_uid for state in left.values()} == {place.stat().st_uid}
        assert {state.st_mode & 0o777 for state in left.values()} == {0o600}
        assert target.read_note(place) is None
