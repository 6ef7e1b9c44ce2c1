"""SIGKILL in the middle of a backup: nothing lists as good that does not restore, and the next one cleans up."""

import random

import pytest

from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.repository.manifest import survey_backups
from tests import archived
from tests.archived import Source
from tests.faults.conftest import Start, Victim

pytestmark = pytest.mark.slow

SEED = 7


def begin(start: Start, source: Source) -> Victim:
    environment = source.settings.as_environment() | {"DR_DSN__DATABASE": source.server.dsn()}
    return start("tests.faults.child", "backup", environment=environment)


def parts(source: Source, before: set[str]) -> int:
    """How many parts of a backup that was not there before are stored."""
    fresh = [name for name in source.store.names("backups") if name not in before]
    return len(source.store.names(f"backups/{fresh[0]}parts")) if fresh else 0


def check_what_is_left(source: Source) -> None:
    survey = survey_backups(source.store)
    assert survey.damaged == ()
    for manifest in survey.complete:
        found = verify(source.store, manifest, workers=2, progress=lambda *_: None)
        assert all(check.passed for check in found.checks), found.checks
    source.back_up()
    after = survey_backups(source.store)
    assert after.incomplete == ()
    assert len(after.complete) == len(survey.complete) + 1


def test_while_it_waits_for_its_log_it_leaves_nothing_that_lists_as_good(start: Start, source: Source) -> None:
    waits = "SELECT count(*) FROM pg_stat_progress_basebackup WHERE phase LIKE 'waiting for wal%'"
    complete = len(survey_backups(source.store).complete)
    with archived.stuck_archive(source):
        begin(start, source).kill_when(lambda: source.ask(waits))
        assert len(survey_backups(source.store).complete) == complete
    check_what_is_left(source)


def test_at_any_moment_the_next_run_cleans_up_and_succeeds(start: Start, source: Source) -> None:
    draw = random.Random(SEED)
    for _ in range(4):
        begin(start, source).kill_after(draw.uniform(0.3, 2.0))
        check_what_is_left(source)


def test_what_was_backed_up_afterwards_restores(start: Start, source: Source) -> None:
    before = set(source.store.names("backups"))
    begin(start, source).kill_when(lambda: parts(source, before) >= 5)
    source.back_up()
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        restore.run()
        assert restore.ask("SELECT count(*) FROM big") == 20000
        assert archived.failed(restore.validate()) == []
