"""PostgreSQL 15 and 18, repository in a folder and on S3: back to the latest point, and to a time between two marks."""

import pytest

from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from tests import archived

pytestmark = pytest.mark.slow

MARKS = "SELECT string_agg(name, ',' ORDER BY name) FROM marks"


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
