"""Archived servers, shared where tests leave them as they found them, and one's own where not."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings
from tests import archived


@pytest.fixture(scope="session")
def settings() -> Iterator[Settings]:
    """A state folder that servers can reach; what still runs at the end is ended."""
    with archived.state() as settings:
        yield settings


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A new repository in a folder."""
    return open_repository(str(tmp_path / "repository"), settings=Settings(), create=True)


@pytest.fixture(scope="module")
def source(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[archived.Source]:
    """The newest PostgreSQL of this machine, archived into a folder, for the tests of one module."""
    folder = tmp_path_factory.mktemp("repository")
    repository = open_repository(str(folder), settings=settings, create=True)
    with archived.source(settings, repository) as running:
        yield running


@pytest.fixture(scope="session")
def bucket(settings: Settings) -> Iterator[Settings]:
    """Settings with which the bucket of an S3 service is reached."""
    leases = Leases(settings.state_dir)
    storage = ObjectStorage.start(settings, leases, owner=archived.OWNER)
    yield settings.model_copy(
        update={
            "repository": f"s3://{storage.bucket}",
            "s3_endpoint": storage.endpoint,
            "s3_region": storage.region,
            "s3_access_key_id": SecretStr(storage.access_key),
            "s3_secret_access_key": SecretStr(storage.secret_key),
        }
    )
    storage.stop(leases)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, settings: Settings, tmp_path: Path) -> tuple[Settings, Repository]:
    """Where backups go, and the settings that lead there."""
    if request.param == "folder":
        url, chosen = str(tmp_path / "repository"), settings
    else:
        chosen = request.getfixturevalue("bucket")
        url = f"{chosen.repository}/{secrets.token_hex(4)}"
    return chosen, open_repository(url, settings=chosen, create=True)
