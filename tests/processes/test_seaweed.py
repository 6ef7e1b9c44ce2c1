import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from dr_pipelines.errors import Locked
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import ObjectStorage, find_weed, shared_object_storage
from dr_pipelines.settings import Settings
from dr_pipelines.timing import FakeClock

pytestmark = pytest.mark.slow

AnotherPython = Callable[[str], subprocess.Popen[str]]

A_USER = """
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import shared_object_storage
from dr_pipelines.settings import Settings
with shared_object_storage(Settings(state_dir=state), Leases(state)) as storage:
    print(storage.endpoint, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def no_socket_stays(state: Path) -> Iterator[None]:
    """A killed instance leaves its sockets to the next start over its data; here none follows."""
    yield
    saved = state / "s3" / "instance.json"
    for port in json.loads(saved.read_text())["ports"].values() if saved.exists() else []:
        for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            path.unlink()


def client(storage: ObjectStorage, **changed: Any) -> Any:
    keys = {"aws_access_key_id": storage.access_key, "aws_secret_access_key": storage.secret_key} | changed
    config = Config(retries={"total_max_attempts": 1}, proxies={})
    return boto3.client("s3", endpoint_url=storage.endpoint, region_name=storage.region, config=config, **keys)


def put(storage: ObjectStorage, key: str) -> None:
    client(storage).put_object(Bucket=storage.bucket, Key=key, Body=key.encode())


def keys_in(storage: ObjectStorage) -> list[str]:
    listed = client(storage).list_objects_v2(Bucket=storage.bucket)
    return [each["Key"] for each in listed.get("Contents", [])]


def test_objects_keys_and_address_outlast_a_restart(settings: Settings, leases: Leases) -> None:
    first = ObjectStorage.start(settings, leases, owner="me")
    put(first, "kept")
    first.stop(leases)
    assert leases.all() == []
    second = ObjectStorage.start(settings, leases, owner="me")
    assert keys_in(second) == ["kept"]
    assert (second.endpoint, second.access_key, second.secret_key) == (
        first.endpoint,
        first.access_key,
        first.secret_key,
    )


def test_what_was_stored_before_can_be_read_as_soon_as_it_is_started_again(settings: Settings, leases: Leases) -> None:
    storage = ObjectStorage.start(settings, leases, owner="me")
    put(storage, "kept")
    for _ in range(6):
        storage.stop(leases)
        storage = ObjectStorage.start(settings, leases, owner="me")
        assert client(storage).get_object(Bucket=storage.bucket, Key="kept")["Body"].read() == b"kept"


def test_objects_outlast_a_kill(settings: Settings, leases: Leases) -> None:
    first = ObjectStorage.start(settings, leases, owner="me")
    put(first, "kept")
    leases.kill(first.lease)
    assert keys_in(ObjectStorage.start(settings, leases, owner="me")) == ["kept"]


def test_it_listens_on_loopback_alone_as_a_user_without_rights(settings: Settings, leases: Leases) -> None:
    storage = ObjectStorage.start(settings, leases, owner="me")
    process = psutil.Process(storage.lease.pid)
    listening = [each for each in process.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert len(listening) >= 9
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}
    assert os.geteuid() != 0 or process.uids().real != 0


def test_nothing_of_it_stays_in_tmp(settings: Settings, leases: Leases) -> None:
    before = set(Path("/tmp").glob("*"))
    storage = ObjectStorage.start(settings, leases, owner="me")
    during = set(Path("/tmp").glob("seaweedfs-*")) - before
    assert during != set()
    storage.stop(leases)
    assert not any(path.exists() for path in during)


def test_only_its_keys_open_it_and_only_we_can_read_them(settings: Settings, leases: Leases) -> None:
    storage = ObjectStorage.start(settings, leases, owner="me")
    with pytest.raises(ClientError):
        client(storage, aws_secret_access_key="wrong").list_objects_v2(Bucket=storage.bucket)
    assert storage.secret_key not in repr(storage)
    readable = [path for path in storage.folder.iterdir() if path.is_file() and path.stat().st_mode & 0o044]
    assert not any(storage.secret_key.encode() in path.read_bytes() for path in readable)


def test_no_second_instance_starts_over_the_same_data(settings: Settings, leases: Leases) -> None:
    ObjectStorage.start(settings, leases, owner="me")
    with pytest.raises(Locked, match=r"uses .* already"):
        ObjectStorage.start(settings, leases, owner="you")


def test_several_share_one_and_the_last_who_leaves_ends_it(
    settings: Settings, leases: Leases, another_python: AnotherPython
) -> None:
    with shared_object_storage(settings, leases) as mine:
        put(mine, "kept")
        other = another_python(A_USER)
        assert other.stdout
        assert other.stdout.readline().strip() == mine.endpoint
        with shared_object_storage(settings, leases) as third:
            assert third.lease.id == mine.lease.id
        assert leases.alive(mine.lease)
    assert leases.alive(mine.lease)
    assert keys_in(mine) == ["kept"]
    other.communicate("\n")
    assert not leases.alive(mine.lease)
    assert leases.all() == []


def test_a_killed_user_neither_takes_it_from_others_nor_keeps_it(
    settings: Settings, leases: Leases, another_python: AnotherPython
) -> None:
    other = another_python(A_USER)
    assert other.stdout
    endpoint = other.stdout.readline().strip()
    with shared_object_storage(settings, leases) as storage:
        assert storage.endpoint == endpoint
        other.kill()
        other.wait()
        put(storage, "kept")
    assert not leases.alive(storage.lease)


def test_one_that_killed_users_left_running_is_taken_over_or_reaped(
    settings: Settings, leases: Leases, state: Path, another_python: AnotherPython
) -> None:
    other = another_python(A_USER)
    assert other.stdout
    other.stdout.readline()
    other.kill()
    other.wait()
    (lease,) = leases.all()
    assert leases.alive(lease)
    with shared_object_storage(settings, leases) as storage:
        assert storage.lease.id == lease.id
        put(storage, "kept")
    assert not leases.alive(lease)

    another = another_python(A_USER)
    assert another.stdout
    another.stdout.readline()
    another.kill()
    another.wait()
    clock = FakeClock(now=leases.all()[0].expires_at)
    assert [each.kind for each in Leases(state, clock).reap()] == ["s3"]
    with shared_object_storage(settings, leases) as storage:
        assert keys_in(storage) == ["kept"]


def test_one_that_broke_down_is_started_anew_for_the_next_who_comes(settings: Settings, leases: Leases) -> None:
    with shared_object_storage(settings, leases) as first:
        leases.kill(first.lease)
        with shared_object_storage(settings, leases) as second:
            put(second, "new")
        assert leases.alive(second.lease)
    assert not leases.alive(second.lease)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers run as somebody else")
def test_a_program_in_a_closed_home_is_put_within_reach_once(
    settings: Settings, leases: Leases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    os.link(find_weed(settings), tmp_path / "weed")
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    program = find_weed(settings)
    assert program.is_relative_to(settings.state_dir / "software")
    first = program.stat()
    assert find_weed(settings).stat() == first
    put(ObjectStorage.start(settings, leases, owner="me"), "kept")
