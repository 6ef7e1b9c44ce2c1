"""SIGKILL in the middle of shipping: no segment is lost, none is half, whoever is killed at whatever moment."""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.repository.repository import Repository
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until
from tests import archived
from tests.archived import Source
from tests.faults.conftest import Start, Victim

pytestmark = pytest.mark.slow

SEED = 11


@pytest.fixture(scope="module")
def source(settings: Settings, repository: Repository) -> Iterator[Source]:
    """A server without an agent that keeps, beside the spool, a copy of each file that it hands over."""
    with archived.source(settings, repository) as running:
        running.stop_agent()
        copies = running.folder / "copies"
        copies.mkdir()
        archived.give_to_server(copies, settings)
        running.options["archive_command"] = f"cp %p {copies}/%f && {running.options['archive_command']}"
        running.server.stop()
        running.start()
        running.do("CREATE TABLE log (text text)")
        yield running


def agent(start: Start, source: Source) -> Victim:
    own = {"DR_DSN__DATABASE": source.server.dsn(), "DR_SPOOL__DATABASE": str(source.spool)}
    return start("dr_pipelines.agent", environment=source.settings.as_environment() | own)


def write_segments(source: Source, count: int) -> None:
    for _ in range(count):
        source.do("INSERT INTO log SELECT md5(n::text) FROM generate_series(1, 2000) n", "SELECT pg_switch_wal()")


def handed_over(source: Source) -> dict[str, bytes]:
    """What PostgreSQL has been told is archived."""
    last = str(source.ask("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver"))
    return {path.name: path.read_bytes() for path in (source.folder / "copies").iterdir() if path.name <= last}


def stored(source: Source) -> int:
    return len(Log(source.store).segments())


def has_stored(source: Source, goal: int) -> bool:
    return stored(source) >= goal


def spooled(source: Source) -> list[Path]:
    return [path for path in source.spool.iterdir() if not path.name.startswith(".")]


def all_is_stored(start: Start, source: Source) -> None:
    """After an agent that nobody kills, byte for byte."""
    last = agent(start, source)
    assert wait_until(lambda: not spooled(source) and source.ask(WAITING) == 0, timeout=60), spooled(source)
    last.kill()
    log = Log(source.store)
    for name, content in handed_over(source).items():
        assert log.fetch(name) == content, name


WAITING = "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"


def test_an_agent_killed_at_a_segment_loses_none(start: Start, source: Source) -> None:
    for more in (1, 3, 5):
        # Enough to reach the goal even where the agent before shipped all that there was before it was killed.
        write_segments(source, 6)
        assert wait_until(lambda: len(spooled(source)) >= 6, timeout=60)
        goal = stored(source) + more
        agent(start, source).kill_when(partial(has_stored, source, goal))
    all_is_stored(start, source)
    assert stored(source) >= 18


def test_an_agent_killed_at_any_moment_under_load_loses_none(start: Start, source: Source) -> None:
    draw = random.Random(SEED)
    for _ in range(4):
        victim = agent(start, source)
        write_segments(source, 4)
        victim.kill_after(draw.uniform(0.3, 1.0))
    all_is_stored(start, source)


def test_a_server_killed_while_it_archives_hands_over_all_when_it_is_back(start: Start, source: Source) -> None:
    for _ in range(3):
        write_segments(source, 4)
        source.server.kill()
        source.start()
    all_is_stored(start, source)


def test_a_spool_with_what_a_killed_copy_left_ships_none_of_it(start: Start, source: Source) -> None:
    write_segments(source, 2)
    half = source.spool / ".000000010000000000000099.1.tmp"
    half.write_bytes(b"half")
    all_is_stored(start, source)
    assert not Log(source.store).has("000000010000000000000099")
