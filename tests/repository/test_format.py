"""The format is a promise: its document is true, and repositories of every released format can be read."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dr_pipelines.repository.envelope import check, unwrap, wrap
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.manifest import list_backups, part_key, read_manifest
from dr_pipelines.repository.repository import open_repository
from dr_pipelines.repository.sealed import unseal
from dr_pipelines.settings import Settings
from tests.repository.golden_objects import put_backup

DOCUMENT = (Path(__file__).parents[2] / "docs" / "repository-format.md").read_text()
FORMATS = sorted((Path(__file__).parent / "formats").glob("[0-9]*"))
FILES = {"base/1": os.urandom(60) + bytes(90), "PG_VERSION": b"18\n", "empty": b"", "odd \udcff name": b"odd"}
BACKUP = "20260301T120000Z-full-9f86d0"
SYSTEM = "services/database/7301"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """A system's folder in a repository, with a backup and a piece of log."""
    repository = open_repository(str(tmp_path / "repository"), settings=Settings(), create=True)
    store = repository.store.child(SYSTEM)
    put_backup(store, BACKUP, FILES)
    store.put("log/00000001/000000010000000000000003", wrap(b"segment" * 1000, hash_raw=True).chunks)
    return tmp_path / "repository" / SYSTEM


def read_with_documented_reader(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    (reader,) = blocks("python")
    (folder / "reader.py").write_text(reader)
    command = [sys.executable, folder / "reader.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_documented_reader_restores_a_backup(system: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    said = read_with_documented_reader(tmp_path, "backup", system, BACKUP, target)
    assert (said.returncode, said.stderr) == (0, "")
    assert {path: (target / path).read_bytes() for path in FILES} == FILES
    assert os.readlink(target / "link") == "base/1"
    assert (target / "base" / "1").stat().st_mode & 0o777 == 0o400


def test_the_documented_reader_fetches_the_log(system: Path, tmp_path: Path) -> None:
    name = "000000010000000000000003"
    assert read_with_documented_reader(tmp_path, "log", system, name, tmp_path / "fetched").returncode == 0
    assert (tmp_path / "fetched").read_bytes() == b"segment" * 1000
    missing = read_with_documented_reader(tmp_path, "log", system, name[:-1] + "4", tmp_path / "missing")
    assert (missing.returncode, missing.stderr) == (1, "")


@pytest.mark.parametrize("damaged", [part_key(BACKUP, 1), f"backups/{BACKUP}/manifest.json"])
def test_the_documented_reader_notices_damage(system: Path, tmp_path: Path, damaged: str) -> None:
    content = bytearray((system / damaged).read_bytes())
    content[-90] ^= 1
    (system / damaged).write_bytes(content)
    (tmp_path / "target").mkdir()
    said = read_with_documented_reader(tmp_path, "backup", system, BACKUP, tmp_path / "target")
    assert said.returncode == 1
    assert "damaged" in said.stderr


@pytest.mark.needs("zstd")
def test_the_documented_commands_read_an_object(system: Path) -> None:
    path = system / part_key(BACKUP, 0)
    header = subprocess.check_output(["head", "-n", "1", path])
    digest = subprocess.check_output("tail -n +2 OBJECT | sha256sum".replace("OBJECT", str(path)), shell=True)
    data = subprocess.check_output("tail -n +2 OBJECT | zstd -d".replace("OBJECT", str(path)), shell=True)
    assert json.loads(header)["stored_sha256"] == digest.decode().split()[0]
    assert data == FILES["base/1"][:100]


def test_the_documented_examples_are_real() -> None:
    (root,) = blocks("json")
    assert unseal(root.encode(), what="the example")["format_version"] == 1
    (example,) = (block for block in blocks("text") if block.startswith('{"codec"'))
    envelope, data = unwrap(io.BytesIO(example.encode()), max_raw=1000)
    assert data == b"room,guest\n101,Ada\n"
    assert envelope.stored_sha256 == hashlib.sha256(data).hexdigest()


def test_every_released_format_is_kept() -> None:
    assert [path.name for path in FORMATS] == ["1", "1-objects", "1-postgres-15", "1-postgres-18"]


def test_the_first_repository_of_all_is_read_and_restored(tmp_path: Path) -> None:
    place = tmp_path / "repository"
    shutil.copytree(FORMATS[0], place)
    repository = open_repository(str(place), settings=Settings())
    store = repository.store.child(SYSTEM)
    assert [found for found, _ in list_backups(store)] == [BACKUP]
    manifest = read_manifest(store, BACKUP)
    restored = {entry.path: bytearray(entry.size) for entry in manifest.files if entry.kind == "file"}
    for part in manifest.parts:
        with store.open(part.key) as stream:
            _, data = unwrap(stream, max_raw=part.raw_size, expected_sha256=part.stored_sha256)
        for number, offset, length in part.ranges:
            restored[manifest.files[number].path][offset : offset + length] = data[:length]
            data = data[length:]
    assert restored == {"base/1": b"row " * 40, "PG_VERSION": b"18\n", "odd \udcff name": b"odd", "empty": b""}
    with store.open("log/00000001/000000010000000000000003") as stream:
        assert check(stream, decompress=True).raw_size == 4096
    assert [record["verdict"] for record in repository.records.list()] == ["met"]
    assert repository.latest_plan() == "plan_version: 1\n"
    assert FolderStore(place).names(f"{SYSTEM}/backups") == [f"{BACKUP}/"]
