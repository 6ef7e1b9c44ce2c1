"""SIGKILL after each single change that an expiry makes: nothing lists that does not restore, the next run goes on."""

import signal

import pytest

from dr_pipelines.engines.postgres.expiry import expire
from dr_pipelines.engines.postgres.exposure import read_exposure
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.plan import Retention
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.timing import SystemClock
from tests import archived
from tests.archived import Source
from tests.faults.conftest import Start

pytestmark = pytest.mark.slow


def test_after_every_change_what_lists_restores_and_the_next_run_goes_on(start: Start, source: Source) -> None:
    environment = source.settings.as_environment()
    source.settings = source.settings.model_copy(update={"part_size": 1 << 26})
    source.do("CREATE TABLE marks AS SELECT 'first' AS mark")
    for number in range(3):
        source.back_up()
        source.do("INSERT INTO marks VALUES ('more')")
        if number == 0:
            # The log of what was loaded first: each of its files would cost a process.
            expire("database", source.repository, Retention(keep=1), clock=SystemClock())
    source.ship()
    store = source.store
    source.stop_agent()
    source.server.kill()
    newest, now = survey_backups(store).complete[0], SystemClock().wall()

    def seen() -> object:
        found = archived.newest(source.repository)
        return found.chain, read_exposure(source.repository.service("database"), "database", now=now, rpo=None)

    before, kills = seen(), 0
    while (code := start("tests.faults.child", "expire", "1", environment=environment).wait()) != 0:
        assert code == -signal.SIGKILL
        kills += 1
        survey = survey_backups(store)
        assert survey.damaged == ()
        for manifest in survey.complete:
            found = verify(store, manifest, workers=2, progress=lambda *_: None)
            assert all(check.passed for check in found.checks), found.checks
        assert seen() == before
    # Two manifests, at least a part each, and the log of at least two backups.
    assert kills >= 6
    assert [manifest.backup_id for manifest in survey_backups(store).complete] == [newest.backup_id]
    assert survey_backups(store).incomplete == ()
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM marks") == 4
        assert archived.failed(restore.validate()) == []
