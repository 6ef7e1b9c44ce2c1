"""PostgreSQL 15 and 18, repository in a folder and on S3: back to the latest point, and to a time between two marks."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.repository.repository import Repository, open_repository
from dr_pipelines.settings import Settings
from tests import archived

pytestmark = pytest.mark.slow

MARKS = "SELECT string_agg(name, ',' ORDER BY name) FROM marks"


@pytest.fixture(scope="module")
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


@pytest.mark.parametrize("major", [pytest.param(15, marks=pytest.mark.debian), 18])
def test_back_to_the_latest_point_and_to_a_time_between_two_marks(
    major: int, place: tuple[Settings, Repository]
) -> None:
    settings, repository = place
    assert find_binaries(settings, major).major == major
    with archived.source(settings, repository, major=major) as source:
        source.do("CREATE TABLE marks (name text)")
        source.back_up()
        source.do("INSERT INTO marks VALUES ('first')")
        between = source.now()
        source.do("INSERT INTO marks VALUES ('second')")
        source.ship()
        # From here on there is nothing but the repository.
        source.stop_agent()
        source.server.kill()
    for moment, found in ((None, "first,second"), (between, "first")):
        with archived.restore(settings, repository, to=moment) as restore:
            restore.run()
            assert restore.ask(MARKS) == found
            assert str(restore.ask("SHOW server_version_num")).startswith(str(major))
            assert archived.failed(restore.validate()) == []
