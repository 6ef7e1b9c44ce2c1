"""Makes the repositories that are kept of each format: python -m tests.repository.golden FOLDER [MAJOR].

Without a major version of PostgreSQL it is one object of each kind, the same bytes on every day; with one it is what a
real server of that version left: a backup (from 17 on an incremental one as well), its log on two timelines with the
last of it in chunks, and a restore with its journal and record. What is there to be found again is beside it, in
story.json.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import psycopg

from dr_pipelines.agent.receiver import Stream
from dr_pipelines.engines.postgres.backup import take_backup
from dr_pipelines.plan import parse_plan
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.postgres import find_binaries, find_client_binaries
from dr_pipelines.repository.repository import Repository
from dr_pipelines.runbooks.closing import close_restore
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, format_moment, wait_until
from tests import archived
from tests.agent.conftest import Host, host
from tests.repository.golden_objects import anonymous, make_objects

HARDEST = 19
MARKS = "SELECT string_agg(name, ',' ORDER BY at) FROM marks"
PLAN = """\
plan_version: 1
tiers: [{name: critical, title: Critical, rto: 1h, rpo: 15m}]
services:
  - name: database
    title: Database
    tier: critical
    engine: postgres
    backup: {full: "0 3 * * *", log: continuous, archive_timeout: 60s}
    validation:
      database: postgres
      smoke_queries: [{name: marks_exist, sql: SELECT count(*) FROM marks, expect: "> 0"}]
      application_query: SELECT 1
"""


@dataclass(frozen=True)
class Story:
    """What a real server's repository holds, to be found again."""

    backups: list[str]
    """Oldest first; each but the first is based on the one before."""
    marks: list[str]
    """Rows of the table `marks`, in the order in which they were written."""
    between: str
    """A moment before the last of them were written."""
    marks_between: list[str]
    """Those that were there at that moment."""
    system: str


def make_postgres(folder: Path, major: int) -> Story:
    """A real server's repository in `folder`/repository, and its story in `folder`/story.json."""
    with archived.state() as state:
        settings = state.model_copy(update={"compression_level": HARDEST, "part_size": 12 << 20})
        repository = archived.new_repository(folder / "repository")
        with host((settings, Leases(settings.state_dir)), find_binaries(settings, major), repository) as source:
            story = _live(source, settings, repository)
        _restore(settings, repository)
    anonymous(folder / "repository", repository.url)
    (folder / "story.json").write_text(json.dumps(asdict(story), indent=2) + "\n")
    return story


def _live(source: Host, settings: Settings, repository: Repository) -> Story:
    binaries, agents, dsn = source.server.binaries, source.agents, source.server.dsn()
    agents.stream = Stream(lambda wanted: find_client_binaries(settings, wanted), "dr_database", chunk_every=0.1)
    source.server.stop()
    source.options = {"fsync": "off", "autovacuum": "off", "summarize_wal": "on"}
    if binaries.major < 17:
        del source.options["summarize_wal"]
    source.start()
    source.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
    with psycopg.connect(source.server.dsn("template1"), autocommit=True) as connection:
        # One megabyte less to keep; a restore can do without it.
        connection.execute("ALTER DATABASE template0 IS_TEMPLATE false")
        connection.execute("DROP DATABASE template0")
    agents.start()
    agents.await_position(lambda position: position.recovery_point, source.system)
    kinds: tuple[Literal["full", "incremental"], ...] = ("full", "incremental")
    backups: list[str] = []
    for kind in kinds if binaries.major >= 17 else kinds[:1]:
        made = take_backup(
            *("database", dsn, repository, binaries, settings),
            clock=SystemClock(),
            progress=lambda done, total: None,
            kind=kind,
            full_every=5,
        )
        assert made.instead is None, made.instead
        backups.append(made.manifest.backup_id)
        source.do(f"INSERT INTO marks VALUES ('after the {kind} backup')")
    between, marks_between = source.now(), _marks(source)
    source.do("INSERT INTO marks VALUES ('before the promotion')")
    _promote(source, settings)
    source.do("INSERT INTO marks VALUES ('on the second timeline')")
    marks = _marks(source)
    moment = source.now()
    agents.await_position(lambda position: position.recovery_point and position.recovery_point > moment, source.system)
    system = source.system
    source.server.kill()
    agents.stop()
    return Story(backups, marks, format_moment(between), marks_between, system)


def _marks(source: Host) -> list[str]:
    return str(source.ask(MARKS)).split(",")


def _promote(source: Host, settings: Settings) -> None:
    """Let the server find the end of its log and begin a timeline of its own there."""
    source.server.stop()
    signal = source.server.data / "recovery.signal"
    signal.touch()
    archived.give_to_server(signal, settings)
    source.start(restore_command="false")
    assert wait_until(lambda: not source.ask("SELECT pg_is_in_recovery()"), timeout=30)


def _restore(settings: Settings, repository: Repository) -> None:
    """Leave the journal and the record of a restore, and the plan that it was held against."""
    plan = parse_plan(PLAN)
    around = archived.surroundings(settings, repository, plan)
    restore = archived.Restore(around, archived.begin(around))
    server = restore.run()
    assert restore.assessment is not None
    close_restore(around, restore.assessment, server, restore.validate(), None, leave_running=False)


if __name__ == "__main__":
    if len(sys.argv) == 2:
        make_objects(Path(sys.argv[1]))
    else:
        make_postgres(Path(sys.argv[1]), int(sys.argv[2]))
