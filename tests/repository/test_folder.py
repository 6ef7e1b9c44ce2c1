"""What a folder promises beyond every store's contract: modes, leftovers, disks that fill up or go away."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import ObjectMissing, RepositoryError, RepositoryUnreachable
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until


@pytest.fixture
def open_umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


def test_only_the_owner_can_read_what_is_stored(folder_store: FolderStore, open_umask: None) -> None:
    folder_store.put("a/b", [b"secret"])
    folder_store.put_if_absent("a/c", [b"secret"])
    top = Path(folder_store.url)
    found = {str(path.relative_to(top)): stat.S_IMODE(path.stat().st_mode) for path in [top, *top.rglob("*")]}
    assert found == {".": 0o700, ".tmp": 0o700, "a": 0o700, "a/b": 0o600, "a/c": 0o600}


WRITER = """
import sys
from dr_pipelines.repository.folder import FolderStore
store = FolderStore(sys.argv[1])
chunks = [b"%c" % sys.argv[2].encode() * 1_000_000] * 40
print("started", flush=True)
while True:
    store.put("replaced", chunks)
    store.put_if_absent("absent/1", chunks)
    store.delete("absent/1")
"""


@pytest.mark.parametrize("after", [0.03, 0.1, 0.2])
def test_a_writer_killed_at_any_moment_leaves_whole_objects_and_a_leftover_that_goes(
    folder_store: FolderStore, after: float
) -> None:
    command = [sys.executable, "-c", WRITER, folder_store.url, "x"]
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"started\n"
        folder = Path(folder_store.url) / ".tmp"
        assert wait_until(lambda: folder.is_dir() and any(folder.iterdir()), timeout=20, interval=0.001)
        deadline = time.monotonic() + after
        assert wait_until(lambda: time.monotonic() > deadline, timeout=20, interval=0.001)
        os.kill(writer.pid, signal.SIGKILL)
    for info in folder_store.list(""):
        assert (info.key in ("replaced", "absent/1"), info.size) == (True, 40_000_000)
    folder_store.put("replaced", [b"new"])
    assert folder_store.get("replaced") == b"new"


def test_old_leftovers_go_when_a_repository_is_opened_and_young_ones_stay(tmp_path: Path) -> None:
    url = str(tmp_path / "r")
    open_repository(url, settings=Settings(), create=True)
    for name, hours in (("old", 25), ("young", 1)):
        path = tmp_path / "r" / ".tmp" / name
        path.write_bytes(b"half")
        moment = time.time() - hours * 3600
        os.utime(path, (moment, moment))
    store = open_repository(url, settings=Settings()).store
    assert [path.name for path in (tmp_path / "r" / ".tmp").iterdir()] == ["young"]
    assert [info.key for info in store.list("")] == ["dr-repository.json"]
    assert FolderStore(url).clean(older_than=timedelta(0)) == 1


def test_leftovers_of_somebody_else_are_not_removed(tmp_path: Path) -> None:
    """A folder that is given by mistake may have a `.tmp` of its own."""
    (tmp_path / ".tmp").mkdir()
    (tmp_path / ".tmp" / "mine").write_bytes(b"x")
    os.utime(tmp_path / ".tmp" / "mine", (0, 0))
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(RepositoryError, match="not empty"):
        open_repository(str(tmp_path), settings=Settings(), create=True)
    assert (tmp_path / ".tmp" / "mine").exists()


def test_an_object_in_the_way_of_a_folder_is_an_error_with_a_hint(folder_store: FolderStore) -> None:
    folder_store.put("a/b", [b""])
    for key in ("a/b/c", "a"):
        for put in (folder_store.put, folder_store.put_if_absent):
            with pytest.raises(RepositoryError, match="cannot write") as caught:
                put(key, [b"x"])
            assert "a file lies where a folder is needed" in caught.value.hint
    assert [info.key for info in folder_store.list("")] == ["a/b"]


def uses_of(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put("b", [b"x"]),
        lambda: store.put_if_absent("b", [b"x"]),
        lambda: store.get("a"),
        lambda: store.info("a"),
        lambda: store.names(""),
        lambda: list(store.list("")),
    ]


def test_a_folder_that_is_exchanged_for_an_empty_one_is_noticed(tmp_path: Path) -> None:
    """As when a disk is unmounted: its backups are not gone, and nothing is to be written beneath."""
    folder = tmp_path / "r"
    store = open_repository(str(folder), settings=Settings(), create=True).service("database")
    store.put("a", [b"x"])
    folder.rename(tmp_path / "away")
    folder.mkdir()
    uses = uses_of(store)
    for use in uses:
        with pytest.raises(RepositoryUnreachable) as caught:
            use()
        assert "unmounted" in caught.value.hint
    folder.rmdir()
    for use in uses:
        with pytest.raises(RepositoryUnreachable):
            use()
    (tmp_path / "away").rename(folder)
    assert store.get("a") == b"x"
    assert store.names("") == ["a"]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ESTALE, RepositoryUnreachable), (errno.EIO, RepositoryError)], ids=["stale", "broken"]
)
def test_a_disk_that_stops_answering_is_an_error_of_the_repository(
    folder_store: FolderStore, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[RepositoryError]
) -> None:
    folder_store.put("a/b", [b"x"])

    def refuse(path: Path, **_: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(os, "statvfs", refuse)
    for use in (*uses_of(folder_store), folder_store.free_bytes):
        with pytest.raises(RepositoryError) as caught:
            use()
        assert type(caught.value) is kind


def test_a_link_to_itself_in_the_folders_place_is_an_error_of_the_repository(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    store = FolderStore(folder)
    store.put("a/b", [b"x"])
    folder.rename(tmp_path / "away")
    folder.symlink_to(folder)
    for use in (*uses_of(store), store.free_bytes):
        with pytest.raises(RepositoryError, match="symbolic links"):
            use()


def test_an_empty_folder_is_nothing_and_none_is_left(folder_store: FolderStore) -> None:
    top = Path(folder_store.url)
    folder_store.put("a/b/c", [b"x"])
    folder_store.delete("a/b/c")
    assert [path.name for path in top.iterdir()] == [".tmp"]
    (top / "by" / "hand").mkdir(parents=True)
    assert folder_store.names("") == folder_store.names("by") == []


def test_lost_and_found_is_not_content(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "lost+found" / "#12").write_bytes(b"")
    assert open_repository(str(tmp_path), settings=Settings(), create=True).store.names("") == ["dr-repository.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_an_error_with_a_hint(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", [b"x"])
    (tmp_path / "a").chmod(0)
    try:
        uses: list[Callable[[], object]] = [
            lambda: store.put("a/c", [b"x"]),
            lambda: store.get("a/b"),
            lambda: store.names("a"),
        ]
        for use in uses:
            with pytest.raises(RepositoryError, match="ermission denied") as caught:
                use()
            assert not isinstance(caught.value, ObjectMissing)
            assert f"user {os.geteuid()}" in caught.value.hint
    finally:
        (tmp_path / "a").chmod(0o700)


# In a mount namespace of its own, so that an ordinary user can have a small disk as well.
SMALL_DISK = """
import os, subprocess, sys
from dr_pipelines.errors import RepositoryError, RepositoryUnreachable
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
folder = sys.argv[1]
mount = lambda *options: subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", folder], check=True)
mount("size=1m")
store = FolderStore(folder)
store.put("kept", [b"x" * 100_000])
for put in (store.put, store.put_if_absent):
    try:
        put("large", [b"y" * 500_000] * 4)
    except RepositoryError as error:
        print(type(error).__name__, error.message.partition(": ")[2], "|", error.hint.partition("; ")[2])
print(sorted(info.key for info in store.list("")), os.listdir(folder + "/.tmp"), store.free_bytes() < 1_000_000)
store.put("kept", [b"z" * 200_000])
open_repository(folder + "/r", settings=Settings(), create=True)
open(folder + "/r/.tmp/old", "w").close()
os.utime(folder + "/r/.tmp/old", (0, 0))
mount("remount", "ro")
print(open_repository(folder + "/r", settings=Settings()).format_version)
try:
    store.put("more", [b"x"])
except RepositoryError as error:
    print(error.message.partition(": ")[2], "|", error.hint)
print(store.get("kept") == b"z" * 200_000)
subprocess.run(["umount", folder], check=True)
try:
    store.put("more", [b"x"])
except RepositoryUnreachable as error:
    print(error.hint, os.listdir(folder))
"""
ALONE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]


@pytest.mark.skipif(
    subprocess.run([*ALONE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False).returncode != 0,
    reason="this user may not mount a disk of its own",
)
def test_a_full_disk_a_read_only_one_and_one_that_is_unmounted_are_errors_with_hints(tmp_path: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    command = [*ALONE, sys.executable, "-c", SMALL_DISK, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    full = "RepositoryError No space left on device | make room there, or remove backups that are not needed any more"
    assert said.stdout.splitlines() == [
        full,
        full,
        "['kept'] [] True",
        "1",
        "Read-only file system | the file system is mounted read-only; "
        "after a disk error the kernel does that by itself",
        "True",
        "was its disk unmounted? Mount it and try again []",
    ], said.stderr
