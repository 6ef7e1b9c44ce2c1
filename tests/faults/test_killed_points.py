"""SIGKILL at exact points of a backup, of shipping and of a restore: what lists as complete restores, the next goes on.

The moments of an expiry and of a cutover are those of test_killed_expiry.py and test_killed_cutover.py.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import running_pid
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source
from tests.faults.conftest import Start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(settings: Settings, repository: Repository) -> Iterator[Source]:
    """A backed up server with some log after the backup."""
    with archived.source(settings, repository) as running:
        running.do("CREATE TABLE counted (n int)")
        running.back_up()
        for _ in range(6):
            running.do("INSERT INTO counted SELECT generate_series(1, 20000)", "SELECT pg_switch_wal()")
        running.ship()
        yield running


def environment(source: Source, kill: str) -> dict[str, str]:
    own = {"DR_DSN__DATABASE": source.server.dsn(), "DR_SPOOL__DATABASE": str(source.spool), "DR_TEST_KILL": kill}
    return source.settings.as_environment() | own


BACKUP = {
    "before the first part": "put|/parts/|1|before",
    "after the first part": "put|/parts/|1|after",
    "between parts": "put|/parts/|20|before",
    "between the last part and the manifest": r"put if absent|manifest\.json|1|before",
    "after the manifest": r"put if absent|manifest\.json|1|after",
}


@pytest.mark.parametrize("kill", BACKUP.values(), ids=BACKUP)
def test_a_backup(start: Start, source: Source, kill: str) -> None:
    before = survey_backups(source.store).complete
    start("tests.faults.child", "backup", environment=environment(source, kill)).dies()
    survey = survey_backups(source.store)
    assert survey.damaged == ()
    complete = kill.endswith("after") and "manifest" in kill
    assert len(survey.complete) == len(before) + complete
    # Before its first object there is nothing of it.
    assert len(survey.incomplete) == (not complete and kill != BACKUP["before the first part"])
    if complete:
        found = verify(source.store, survey.complete[0], workers=2, progress=lambda *_: None)
        assert all(check.passed for check in found.checks), found.checks
        return
    source.back_up()
    after = survey_backups(source.store)
    assert (len(after.complete), after.incomplete) == (len(before) + 1, ())


SHIPPING = {
    "before a segment's put": "put if absent|^log/|1|before",
    "after a segment's put": "put if absent|^log/|2|after",
    "before its removal from the spool": "remove from the spool||3|before",
    "after its removal from the spool": "remove from the spool||1|after",
    "before it tells the position": r"put|position\.json|2|before",
}


def spooled(source: Source) -> set[str]:
    return {name for name in os.listdir(source.spool) if not name.startswith(".")}


@pytest.mark.parametrize("kill", SHIPPING.values(), ids=SHIPPING)
def test_shipping(start: Start, source: Source, kill: str) -> None:
    with source.without_agent():
        for _ in range(4):
            source.do("INSERT INTO counted SELECT generate_series(1, 5000)", "SELECT pg_switch_wal()")
        assert wait_until(lambda: len(spooled(source)) >= 4, timeout=30)
        waiting = {name: (source.spool / name).read_bytes() for name in spooled(source)}
        start("tests.faults.child", "agent", environment=environment(source, kill)).dies()
        log = Log(source.store)
        # Each is in the spool or stored, byte for byte.
        for name, content in waiting.items():
            assert log.fetch(name) == content if log.has(name) else name in spooled(source)
    source.ship()
    assert {name: Log(source.store).fetch(name) for name in waiting} == waiting
    assert source.position().problem is None


STREAMING = {
    "after a chunk's put": r"put if absent|\.chunks/|3|after",
    "between a segment's put and the removal of its chunks": r"delete|\.chunks/|1|before",
}


@pytest.mark.parametrize("kill", STREAMING.values(), ids=STREAMING)
def test_streaming(start: Start, settings: Settings, tmp_path: Path, kill: str) -> None:
    repository = archived.new_repository(tmp_path / "repository")
    own = settings.model_copy(update={"repository": repository.url})
    spool = tmp_path / "received"
    spool.mkdir()
    with archived.source(own, repository) as source:
        source.do("CREATE TABLE counted (n int)")
        source.back_up()
        source.ship()
        # From here on nothing but the stream brings the log.
        source.stop_agent()
        source.server.stop()
        source.start(archive_command="/bin/true")
        variables = environment(source, kill) | {"DR_SPOOL__DATABASE": str(spool)}
        victim = start("tests.faults.child", "agent", "stream", environment=variables)

        def write_until_it_is_dead() -> bool:
            source.do("INSERT INTO counted SELECT generate_series(1, 3000)")
            return victim.is_dead()

        assert wait_until(write_until_it_is_dead, timeout=60, interval=0.3)
        last = start("tests.faults.child", "agent", "stream", environment={**variables, "DR_TEST_KILL": "||0|"})
        now = source.now()
        assert wait_until(lambda: (source.position().recovery_point or now) > now, timeout=60)
        last.kill()
        with archived.restore(own, repository) as restore:
            restore.run()
            assert restore.ask("SELECT count(*) FROM counted") == source.ask("SELECT count(*) FROM counted")
            assert archived.failed(restore.validate()) == []


RESTORE = {
    "before the first part": "fetch a part||1|before",
    "during parts": "fetch a part||20|after",
    "before recovery": "recover||1|before",
    "during replay": "fetch a segment||5|after",
    "before validation": "validate||1|before",
}


@pytest.mark.parametrize("kill", RESTORE.values(), ids=RESTORE)
def test_a_restore(start: Start, source: Source, kill: str) -> None:
    source.ship()
    with archived.restore(source.settings, source.repository) as restore:
        start("tests.faults.child", "restore", restore.execution.id, environment=environment(source, kill)).dies()
        server = restore.run()
        assert restore.ask("SELECT count(*) FROM counted") == source.ask("SELECT count(*) FROM counted")
        assert archived.failed(restore.validate()) == []
        leases = Leases(source.settings.state_dir)
        alive = [lease.pid for lease in leases.of(restore.execution.id) if leases.alive(lease)]
        assert alive == [running_pid(server.data)]
