"""Archived servers, shared where tests leave them as they found them, and one's own where not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
