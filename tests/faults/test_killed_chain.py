"""SIGKILL in the middle of the restore of a chain: resumed, it fetches only what is missing, and every row is back."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import archived
from tests.archived import Restore, Source
from tests.faults.conftest import Start

pytestmark = pytest.mark.slow


@pytest.fixture
def restore(source: Source) -> Iterator[Restore]:
    """Of a full backup and two incremental ones."""
    source.do("ALTER SYSTEM SET summarize_wal = on", "SELECT pg_reload_conf()", "VACUUM (FREEZE) big")
    source.back_up()
    for number in (1, 2):
        source.do(f"UPDATE big SET text = 'changed {number}' WHERE n % 3 = {number}")
        assert source.take_backup(kind="incremental").instead is None
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        yield restore


def test_is_resumed_with_the_parts_that_are_missing(start: Start, source: Source, restore: Restore) -> None:
    place = restore.around.settings.state_dir / "restores" / restore.execution.id / "data" / "dr_restore"

    def done() -> int:
        journal: Path = place / "parts"
        return max(0, journal.read_text().count("\n") - 1) if journal.exists() else 0

    def reached(parts: int) -> bool:
        return done() >= parts

    environment = source.settings.as_environment()
    for parts in (1, 20):
        victim = start("tests.faults.child", "restore", restore.execution.id, environment=environment)
        victim.kill_when(partial(reached, parts))
    before = done()
    restore.prepare()
    files = restore.fetch()
    assert before > 0 and files.verified.passed
    assert files.parts_fetched + before == done()
    restore.apply()
    changed = "SELECT count(*) FILTER (WHERE text LIKE 'changed%') || ' of ' || count(*) FROM big"
    assert restore.ask(changed) == "13334 of 20000"
    assert archived.failed(restore.validate()) == []
