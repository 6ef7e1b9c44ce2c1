"""Stores of both kinds: a folder, and a bucket of a real S3 service."""

import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.s3 import S3Store
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings


@pytest.fixture(scope="session")
def object_storage() -> Iterator[ObjectStorage]:
    """An S3 service of this session's own."""
    folder = Path(tempfile.mkdtemp(prefix="dr-test-s3-", dir="/tmp"))
    folder.chmod(0o755)
    leases = Leases(folder)
    storage = ObjectStorage.start(Settings(state_dir=folder), leases, owner="tests")
    yield storage
    leases.kill(storage.lease)  # its own end takes a while, and nothing that it holds is wanted any more
    shutil.rmtree(folder)


@pytest.fixture
def s3_settings(object_storage: ObjectStorage) -> Settings:
    """Settings with which the S3 service of the tests is reached."""
    return Settings(
        s3_endpoint=object_storage.endpoint,
        s3_region=object_storage.region,
        s3_access_key_id=SecretStr(object_storage.access_key),
        s3_secret_access_key=SecretStr(object_storage.secret_key),
    )


@pytest.fixture
def s3_url(object_storage: ObjectStorage) -> str:
    """An empty place in the tests' bucket."""
    return f"s3://{object_storage.bucket}/{secrets.token_hex(8)}"


@pytest.fixture
def folder_store(tmp_path: Path) -> FolderStore:
    """An empty store in a folder."""
    return FolderStore(tmp_path / "store")


@pytest.fixture
def s3_store(object_storage: ObjectStorage, s3_settings: Settings) -> S3Store:
    """An empty store in a bucket."""
    return S3Store(
        object_storage.bucket,
        secrets.token_hex(8),
        endpoint=s3_settings.s3_endpoint,
        region=s3_settings.s3_region,
        access_key_id=s3_settings.s3_access_key_id,
        secret_access_key=s3_settings.s3_secret_access_key,
    )


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    """An empty store, of each kind in turn."""
    made: Store = request.getfixturevalue(f"{request.param}_store")
    return made


Damage = Callable[[Store, str, int], None]


@pytest.fixture
def flip() -> Damage:
    """Changes one bit of one byte of a stored object, counted from its beginning or, negative, from its end."""

    def change(store: Store, key: str, position: int) -> None:
        data = bytearray(store.get(key))
        data[position] ^= 0x01
        store.put(key, [data])

    return change
