"""A repository that somebody made to do harm: nothing is written outside of the target, and memory stays bounded."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import zstandard

from dr_pipelines.engines.layout import WholeBackup
from dr_pipelines.engines.parts import PartReader
from dr_pipelines.engines.postgres.details import look_at_backups
from dr_pipelines.errors import ObjectCorrupt, RepositoryError
from dr_pipelines.repository.envelope import Envelope, wrap
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import clear_incomplete, read_manifest
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.settings import Settings
from tests import archived
from tests.faults import every_kind
from tests.faults.conftest import ROOT
from tests.faults.every_kind import EveryKind

MEMORY = 300 << 20
"""Bytes that a command may take at most, with all of Python; it takes about 100 MiB by itself."""
MEASURED = """
import atexit, pathlib, runpy, sys
note = pathlib.Path(sys.argv.pop(1))
atexit.register(lambda: note.write_text(pathlib.Path("/proc/self/status").read_text()))
runpy.run_module("dr_pipelines.cli", run_name="__main__", alter_sys=True)
"""
"""Runs `dr` and notes its memory at the end. What the kernel tells of an ended child counts its parent's in, too."""
Fields = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    memory: int
    """Bytes at its peak."""


@dataclass
class Hostile:
    """A repository in a folder of its own, to be made hostile, and the command `dr` on it."""

    made: EveryKind
    folder: Path

    @property
    def backups(self) -> Path:
        return Path(self.made.store.url) / "backups"

    def rewrite(self, change: Callable[[Fields], object]) -> None:
        """Change the newest manifest, and seal it again, as whoever can write there can."""
        path = self.backups / self.made.newer.backup_id / "manifest.json"
        fields = unseal(path.read_bytes(), what="it")
        change(fields)
        path.write_bytes(seal(fields))

    def dr(self, *arguments: str | Path) -> Ran:
        own = {"DR_REPOSITORY": str(self.made.folder), "DR_STATE_DIR": str(self.folder / "state")}
        note = self.folder / "memory"
        command = [sys.executable, "-c", MEASURED, str(note), *map(str, arguments)]
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **own}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        assert "unexpected" not in done.stderr, done
        (peak,) = re.findall(r"^VmHWM:\s+(\d+) kB$", note.read_text(), re.MULTILINE)
        note.unlink()
        return Ran(done.returncode, done.stdout, done.stderr, int(peak) << 10)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> EveryKind:
    return every_kind.make(tmp_path_factory.mktemp("whole") / "repository")


@pytest.fixture
def hostile(whole: EveryKind, world_readable_folder: Path) -> Iterator[Hostile]:
    yield Hostile(whole.copy(world_readable_folder / "repository"), world_readable_folder)
    # Not by any of the names, and not by what they lead to.
    assert {path.name for path in world_readable_folder.iterdir()} <= {"repository", "state", "target", "victim"}


def put_file(path: str, **more: object) -> Callable[[Fields], object]:
    entry = {"path": path, "kind": "file", "mode": 0o600, "size": 0, **more}
    return lambda fields: fields["files"].append(entry)


def put_detail(**details: object) -> Callable[[Fields], object]:
    return lambda fields: fields["details"].update(details)


MANIFESTS: Mapping[str, Callable[[Fields], object]] = {
    "a path that climbs": put_file("base/../../escaped"),
    "an absolute path": put_file("/tmp/escaped"),
    "a link that leads out": put_file("base/out", kind="link", link="../../.."),
    "a file below a link": lambda fields: (
        put_file("here", kind="link", link="base")(fields),
        put_file("here/file")(fields),
    ),
    "setuid": put_file("shell", mode=0o4755),
    "a size of 2^60": put_file("large", size=1 << 60),
    "a part of 2^60": lambda fields: fields["parts"][0].update(raw_size=1 << 60),
    "a part of another backup": lambda fields: fields["parts"][0].update(key="backups/x/parts/000000"),
    "a part elsewhere": lambda fields: fields["parts"][0].update(key="../../../../etc/passwd"),
    "another's id": lambda fields: fields.update(backup_id="$(touch pwned)"),
    "a position that is none": put_detail(start_lsn="$(touch pwned)"),
    "a position beyond all": put_detail(stop_lsn="FFFFFFFFF/0"),
    "an end before the start": put_detail(stop_lsn="0/1"),
    "segments of 2^60": put_detail(wal_segment_size=1 << 60),
    "segments of nothing": put_detail(wal_segment_size=0),
    "a timeline of 2^60": put_detail(timeline=1 << 60),
    "a version that is none": put_detail(major="18; touch pwned"),
    "a user that is no name": put_detail(superuser="x\0y"),
    "max_wal_size of less than nothing": put_detail(max_wal_size=-1),
    "no details": lambda fields: fields["details"].clear(),
    "lists for names": lambda fields: fields.update(service=["database"], engine={}),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_made_to_do_harm_is_refused_and_the_one_before_it_taken(
    hostile: Hostile, change: Callable[[Fields], object]
) -> None:
    hostile.rewrite(change)
    survey = look_at_backups(hostile.made.store)
    assert [backup.backup_id for backup in survey.complete] == [hostile.made.older.backup_id]
    assert [backup_id for backup_id, _ in survey.damaged] == [hostile.made.newer.backup_id]


def test_what_is_refused_is_named_by_every_command_and_a_restore_of_it_writes_nothing(hostile: Hostile) -> None:
    hostile.rewrite(put_file("base/../../escaped"))
    evil, target = hostile.made.newer.backup_id, hostile.folder / "target"
    said = hostile.dr("backup", "list", "--json")
    found = {entry["backup_id"]: entry for entry in json.loads(said.out)["backups"]}
    assert found[evil]["state"] == "damaged"
    assert "base/../../escaped" in found[evil]["problem"]
    assert hostile.dr("backup", "verify", "database", evil).code == 1
    refused = hostile.dr("restore", "database", "--backup", evil, "--target", target)
    assert refused.code == 2, refused.err
    assert not target.exists()


SHELL = "$(touch pwned); `touch pwned` | touch pwned & > pwned"
NAMES = [SHELL, "line\nbreak", "quote'\"s", "-rf", "*", "~", "\\", "\u202e", "\udcff", "%p %f", "a" * 255]


def test_names_with_shell_characters_are_names(hostile: Hostile) -> None:
    for name in NAMES:
        hostile.rewrite(put_file(f"base/{name}"))
    target = hostile.folder / "target"
    (target / "dr_restore").mkdir(parents=True)
    manifest = read_manifest(hostile.made.store, hostile.made.newer.backup_id)
    reader = PartReader(
        hostile.made.store,
        WholeBackup(manifest),
        target,
        journal=target / "dr_restore" / "parts",
        owner=None,
        workers=2,
    )
    reader.restore(lambda done, total: None)
    assert set(os.listdir(os.fsencode(target / "base"))) == {b"1", *(os.fsencode(name) for name in NAMES)}


def test_a_restore_of_a_cluster_with_shell_characters_in_its_names_runs_none_of_them(hostile: Hostile) -> None:
    """The files are made up, so it fails; what matters is what it did not do."""
    hostile.rewrite(put_file(f"base/{SHELL}"))
    hostile.rewrite(put_detail(superuser=SHELL))
    ran = hostile.dr("restore", "database", "--target", hostile.folder / "target", "--reason", SHELL)
    assert ran.code == 1, ran.err
    assert not list(hostile.folder.rglob("pwned"))


def test_strange_names_in_the_repository_hide_nothing_and_are_left_alone(hostile: Hostile) -> None:
    store, survey = hostile.made.store, look_at_backups(hostile.made.store)
    place = Path(store.url)
    strange = [hostile.backups / SHELL.replace("/", ""), hostile.backups / "line\nbreak", hostile.backups / "-rf"]
    strange += [hostile.backups / "kept by hand", hostile.backups / "kept-by-hand", place / "log" / SHELL.strip(">")]
    for folder in strange:
        (folder / "parts").mkdir(parents=True)
        (folder / "parts" / "000000").write_bytes(b"somebody's")
    for name in ("000000010000000000000005\n", "../x".replace("/", "_"), SHELL.replace("/", ""), "0" * 24 + ".sh"):
        (place / "log" / "00000001" / name).write_bytes(b"somebody's")
    before = archived.files_below(place)
    assert look_at_backups(store).complete == survey.complete
    assert clear_incomplete(store, datetime.now(UTC) + timedelta(days=30)) == ()
    assert hostile.dr("backup", "list").code == 0
    assert hostile.dr("backup", "verify").code == 0
    gone = before.keys() - archived.files_below(place).keys()
    assert {Path(name).parent.name for name in gone if "manifest.json" not in name} <= {"backups"}, gone
    assert all((folder / "parts" / "000000").exists() for folder in strange)


def test_a_backup_without_its_label_is_no_files_to_start_a_server_on(hostile: Hostile) -> None:
    def drop(fields: Fields) -> None:
        label = next(entry for entry in fields["files"] if entry["path"] == "backup_label")
        label["path"] = "another"

    hostile.rewrite(drop)
    ran = hostile.dr("restore", "database", "--target", hostile.folder / "target")
    assert (ran.code, "holds no backup_label" in ran.err) == (1, True)


def enveloped(payload: bytes, **header: Any) -> bytes:
    """An object whose header says what it likes of its payload, with a right hash."""
    sound = wrap(payload, codec="none").envelope
    fields = {name: getattr(sound, name) for name in Envelope.__slots__} | {"codec": "zstd"} | header
    return Envelope(**fields).header() + payload


ZEROS = 1 << 30


@cache
def bomb() -> bytes:
    """Some kilobytes that unpack to a gigabyte."""
    packer = zstandard.ZstdCompressor(level=1).compressobj()
    return b"".join([*(packer.compress(bytes(1 << 24)) for _ in range(ZEROS >> 24)), packer.flush()])


@cache
def wide() -> bytes:
    """What asks its reader to remember 128 MiB."""
    asked = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    return zstandard.ZstdCompressor(compression_params=asked).compress(os.urandom(1000) + bytes(ZEROS >> 3))


def sparse(path: Path, size: int) -> None:
    """A file that claims to be large and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)


def in_a_part(payload: Callable[[], bytes], **header: Any) -> Callable[[Hostile], object]:
    def put(hostile: Hostile) -> None:
        part = hostile.made.newer.parts[1]
        wrapped = enveloped(payload(), raw_size=part.raw_size, **header)
        stored = json.loads(wrapped.partition(b"\n")[0])
        (Path(hostile.made.store.url) / part.key).write_bytes(wrapped)
        same = {name: stored[name] for name in ("stored_sha256", "stored_size")}
        hostile.rewrite(lambda fields: fields["parts"][1].update(same))

    return put


def in_a_segment(payload: Callable[[], bytes], **header: Any) -> Callable[[Hostile], object]:
    def put(hostile: Hostile) -> None:
        (hostile.made.folder / hostile.made.keys["segment"]).write_bytes(enveloped(payload(), **header))

    return put


def large(kind: str, size: int) -> Callable[[Hostile], object]:
    return lambda hostile: sparse(hostile.made.folder / hostile.made.keys[kind], size)


BOMBS: Mapping[str, tuple[Callable[[Hostile], object], int, str]] = {
    "a part that unpacks to a gigabyte": (in_a_part(bomb), 1, "does not hold the"),
    "a part that asks for a large window": (in_a_part(wide), 1, "cannot be decompressed"),
    "a segment that unpacks to a gigabyte": (in_a_segment(bomb, raw_size=1 << 20), 1, "does not hold"),
    "a segment that says so": (in_a_segment(bomb, raw_size=ZEROS), 1, "claims to hold 1073741824 bytes"),
    "a root of a terabyte": (large("root", 1 << 40), 1, "is larger than 67108864 bytes"),
    "a position of a terabyte": (large("position", 1 << 40), 1, "is larger than 67108864 bytes"),
    "a pointer of a terabyte": (large("plan pointer", 1 << 40), 1, "is larger than 67108864 bytes"),
    "a history of a terabyte": (large("history", 1 << 40), 1, "not a sealed document"),
}


@pytest.mark.parametrize(("place", "code", "said"), BOMBS.values(), ids=BOMBS)
def test_what_would_fill_the_memory_is_refused_in_bounded_memory(
    hostile: Hostile, place: Callable[[Hostile], object], code: int, said: str
) -> None:
    place(hostile)
    ran = hostile.dr("backup", "verify", "database")
    assert ran.code == code
    assert said in ran.out + ran.err
    assert ran.memory < MEMORY


@pytest.mark.parametrize("payload", [bomb, wide])
def test_a_part_that_would_fill_the_memory_ends_a_restore_in_bounded_memory(
    hostile: Hostile, payload: Callable[[], bytes]
) -> None:
    in_a_part(payload)(hostile)
    ran = hostile.dr("restore", "database", "--target", hostile.folder / "target")
    assert ran.code == 1
    assert f"{hostile.made.newer.parts[1].key} " in ran.err
    assert ran.memory < MEMORY


def test_a_manifest_of_a_terabyte_is_refused_in_bounded_memory(hostile: Hostile) -> None:
    large("manifest", 1 << 40)(hostile)
    ran = hostile.dr("backup", "list")
    assert "is larger than 268435456 bytes" in ran.out
    # Which is what a manifest may have.
    assert ran.memory < MEMORY + (512 << 20)


@pytest.fixture
def victim(hostile: Hostile) -> Path:
    """A folder of somebody else's, with what looks old and what looks like parts."""
    folder = hostile.folder / "victim"
    (folder / "parts").mkdir(parents=True)
    for name in ("diary", "parts/000000"):
        (folder / name).write_text("somebody's")
        os.utime(folder / name, (0, 0))
    return folder


LINKS = {
    "what is being written": ".tmp",
    "a backup": "services/database/7340000000000000001/backups/20260301T120000Z-full-9f86d0",
    "the log": "services/database/7340000000000000001/log/00000009",
    "a system": "services/database/7340000000000000002",
    "the locks": "services/database/locks/restore",
    "the records": "records/2020",
}


@pytest.mark.parametrize("place", LINKS.values(), ids=LINKS)
def test_a_link_in_the_repository_leads_nothing_out_of_it(hostile: Hostile, victim: Path, place: str) -> None:
    where = hostile.made.folder / place
    if where.is_dir():
        where.rmdir()
    where.parent.mkdir(exist_ok=True)
    where.symlink_to(victim)
    before = archived.files_below(victim)
    assert hostile.dr("backup", "list", "database").code == 0
    repository = open_repository(str(hostile.made.folder), settings=Settings())
    clear_incomplete(hostile.made.store, datetime.now(UTC) + timedelta(days=30))
    for use in (
        lambda: repository.store.put(f"{place}/new", [b"x"]),
        lambda: repository.store.put_if_absent(f"{place}/new", [b"x"]),
        lambda: repository.store.delete(f"{place}/diary"),
        lambda: repository.store.get(f"{place}/diary"),
    ):
        with pytest.raises(RepositoryError):
            use()
    assert [found.key for found in repository.store.list("") if found.key.startswith(place)] == []
    assert archived.files_below(victim) == before


def test_an_object_that_is_a_link_is_not_read(hostile: Hostile, victim: Path) -> None:
    for kind in ("part", "segment", "position", "record"):
        path = hostile.made.folder / hostile.made.keys[kind]
        path.unlink()
        path.symlink_to(victim / "diary")
    ran = hostile.dr("backup", "verify", "database")
    assert ran.code == 1
    assert "is a link, and there is none in a repository" in ran.out + ran.err


def test_the_repositorys_folder_itself_may_be_a_link(hostile: Hostile) -> None:
    link = hostile.folder / "victim"
    link.symlink_to(hostile.made.folder)
    store = FolderStore(link)
    store.put("new", [b"x"])
    assert store.get("new") == b"x"
    assert "new" in store.names("")


def test_no_word_of_a_repository_steers_the_terminal() -> None:
    error = ObjectCorrupt("\x1b[2Jgone\rwell\x9b31m\x07: a line\nand\ta tab")
    assert error.message == "\\x1b[2Jgone\\x0dwell\\x9b31m\\x07: a line\nand\ta tab"
