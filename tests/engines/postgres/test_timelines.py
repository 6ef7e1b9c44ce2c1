"""A restored server in production goes on on a timeline of its own: what is on the old one, and on the new one, and how
it is said which is meant."""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import psycopg
import pytest

from dr_pipelines.engines.postgres.coverage import choose
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.errors import AmbiguousTimeline, NotCovered
from dr_pipelines.repository.repository import Repository
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived

pytestmark = pytest.mark.slow

MARKS = "SELECT string_agg(name, ',' ORDER BY at) FROM marks"


def mark(server: archived.Source, name: str) -> datetime:
    """Write a mark; returns a moment after it, before anything else."""
    server.do(f"INSERT INTO marks VALUES ('{name}')")
    return server.now()


@dataclass(frozen=True)
class Story:
    """'good' and 'bad' are written; the server is lost, restored to before 'bad', and goes on with 'new', a backup, and
    'newer'."""

    repository: Repository
    store: Store
    good: datetime
    bad: datetime
    idle: datetime
    """Later than everything that the old one wrote."""
    new: datetime
    newer: datetime
    backups: tuple[str, str]
    """One of each timeline."""


@pytest.fixture(scope="module")
def story(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    repository = archived.new_repository(tmp_path_factory.mktemp("timelines"))
    with archived.source(settings, repository) as old:
        old.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
        first = old.back_up().backup_id
        good = mark(old, "good")
        bad = mark(old, "bad")
        idle = old.ship()
        store = old.store
        old.stop_agent()
        old.server.kill()
        with (
            archived.open_to_all() as folder,
            archived.restore(settings, repository, to=good, target=folder / "data") as restore,
        ):
            restore.run()
            assert restore.ask(MARKS) == "good"
            with archived.in_production(restore, old) as server:
                assert wait_until(lambda: Log(store).has("00000002.history"), timeout=30)
                new = mark(server, "new")
                server.ship()
                second = server.back_up().backup_id
                newer = mark(server, "newer")
                server.ship()
        yield Story(repository, store, good, bad, idle, new, newer, (first, second))


def restored(settings: Settings, story: Story, to: datetime | None = None, timeline: int | None = None) -> str:
    """The marks that a restore brings back, the backup that it took, and the timeline that it goes on on."""
    with archived.restore(settings, story.repository, to=to, timeline=timeline) as restore:
        server = restore.run()
        assert archived.failed(restore.validate()) == []
        assert restore.assessment is not None
        number = story.backups.index(restore.assessment.backup_id) + 1
        return f"{restore.ask(MARKS)} from backup {number}, then timeline {server.timeline}"


def test_a_time_after_it_that_the_old_server_wrote_is_on_the_old_timeline(settings: Settings, story: Story) -> None:
    assert restored(settings, story, story.bad) == "good,bad from backup 1, then timeline 3"


def test_a_time_that_the_new_server_wrote_is_on_the_new_one_across_the_split(settings: Settings, story: Story) -> None:
    assert restored(settings, story, story.new) == "good,new from backup 1, then timeline 3"


def test_latest_is_on_the_new_one(settings: Settings, story: Story) -> None:
    assert restored(settings, story) == "good,new,newer from backup 2, then timeline 3"


def test_the_end_of_the_old_one_is_reached_where_that_is_said(settings: Settings, story: Story) -> None:
    assert restored(settings, story, timeline=1) == "good,bad from backup 1, then timeline 3"


def test_a_time_at_which_the_old_server_was_idle_is_on_the_old_one(settings: Settings, story: Story) -> None:
    assert restored(settings, story, story.idle) == "good,bad from backup 1, then timeline 3"


def test_what_is_on_the_other_timeline_is_told(story: Story) -> None:
    said = {moment: choose(story.store, moment).others or "" for moment in (story.bad, story.new, None)}
    assert said[story.bad].startswith("this leads to timeline 1 (to about ")
    assert "there is another: timeline 2 (left timeline 1 at " in said[story.bad]
    assert said[story.bad].endswith(": --timeline 2")
    assert said[story.new] == said[None]
    assert said[None].startswith("this leads to timeline 2 ") and said[None].endswith(": --timeline 1")
    # Where somebody said so, nothing needs to be told.
    assert choose(story.store, None, timeline=1).others is None


def test_what_was_proven_of_the_old_timeline_is_kept_and_is_not_taken_for_the_new_one(story: Story) -> None:
    log = Log(story.store)
    left, now = log.read_position(1), log.read_position()
    assert left is not None and now is not None
    assert left.recovery_point is not None and left.recovery_point >= story.idle
    assert (left.timeline, now.timeline) == (1, 2)
    assert choose(story.store, None, timeline=1).recovery_point == left.recovery_point
    assert choose(story.store, None).recovery_point == now.recovery_point != left.recovery_point


@pytest.mark.parametrize("timeline", [1, 2])
def test_a_time_that_the_timeline_has_not_is_refused_with_its_range(story: Story, timeline: int) -> None:
    moment = story.newer if timeline == 1 else SystemClock().wall()
    with pytest.raises(NotCovered, match="outside of what the repository covers"):
        choose(story.store, moment, timeline=timeline)


def test_a_timeline_that_is_not_there_is_refused_with_those_that_are(story: Story) -> None:
    with pytest.raises(NotCovered, match="there is no timeline 7") as refused:
        choose(story.store, None, timeline=7)
    assert "timeline 1 (" in refused.value.hint and "timeline 2 (" in refused.value.hint


def test_two_servers_that_were_restored_at_once_take_one_timeline_and_the_second_stores_none_of_it(
    settings: Settings, repository: Repository
) -> None:
    """Neither knows of the other when it takes its timeline. What the first has stored stays as it is."""
    with archived.source(settings, repository) as lost, contextlib.ExitStack() as stack:
        lost.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
        lost.back_up()
        mark(lost, "before")
        lost.ship()
        store = lost.store
        lost.stop_agent()
        lost.server.kill()
        folder = stack.enter_context(archived.open_to_all())
        restores = [
            stack.enter_context(archived.restore(settings, repository, target=folder / name)) for name in ("a", "b")
        ]
        assert [restore.run().timeline for restore in restores] == [2, 2]

        # None has archived anything while it was being restored, whatever the lost one's configuration says.
        for restore in restores:
            assert restore.server is not None
            with psycopg.connect(restore.server.dsn(), autocommit=True) as connection:
                connection.execute("INSERT INTO marks VALUES ('while it is restored')")
                connection.execute("SELECT pg_switch_wal()")
        assert [path.name for path in lost.spool.iterdir()] == [".agent.lock"]
        assert store.names("log") == ["00000001/"]

        first = stack.enter_context(archived.in_production(restores[0], lost))
        mark(first, "first")
        first.ship()
        first.back_up()
        first.ship()
        stored = {found.key: found.size for found in store.list("log/")}

        second = stack.enter_context(archived.in_production(restores[1], lost))
        mark(second, "second")
        second.do("SELECT pg_switch_wal()")
        said = ""

        def is_told() -> bool:
            # The first one's agent goes on telling of itself in between.
            nonlocal said
            position = second.position()
            said = position.problem or ""
            return position.foreign_from is not None and "stays in the spool" in said

        assert wait_until(is_told, timeout=30), second.position()
        assert re.search(r"00000002[0-9A-F]{16} stays in the spool: .* is stored already, with other content", said)
        assert "another server that was restored from the same log" in said and "restore again" in said
        second.stop_agent()
        second.server.kill()
        assert {found.key: found.size for found in store.list("log/") if found.key in stored} == stored
        point = first.ship()
        first.stop_agent()
        with archived.restore(settings, repository, to=point) as restore:
            # The next one takes a timeline that nobody has.
            assert restore.run().timeline == 3
            assert restore.ask(MARKS) == "before,while it is restored,first"


def test_a_time_at_which_two_servers_wrote_has_to_be_said_which(settings: Settings, repository: Repository) -> None:
    with archived.source(settings, repository) as old, contextlib.ExitStack() as stack:
        old.do("CREATE TABLE marks (name text, at timestamptz DEFAULT clock_timestamp())")
        old.back_up()
        good = mark(old, "good")
        mark(old, "bad")
        old.ship()
        store = old.store
        # It is not fenced: it goes on beside the one that is to take its place.
        folder = stack.enter_context(archived.open_to_all())
        restore = stack.enter_context(archived.restore(settings, repository, to=good, target=folder / "data"))
        restore.run()
        new = stack.enter_context(archived.in_production(restore, old))
        assert wait_until(lambda: Log(store).has("00000002.history"), timeout=30)
        mark(old, "on the old one")
        both = mark(new, "on the new one")
        for server in (old, new):
            server.do("SELECT pg_switch_wal()")
            mark(server, "later")
            server.do("SELECT pg_switch_wal()")
        assert wait_until(
            lambda: all(each.until and each.until > both for each in choose(store, None).timelines.values()), timeout=30
        )
        with pytest.raises(AmbiguousTimeline) as refused:
            choose(store, both)
        assert "timeline 1 (" in refused.value.message and "timeline 2 (left timeline 1 at " in refused.value.message
        assert refused.value.hint == "--timeline 1 or --timeline 2"
        for server in (old, new):
            server.stop_agent()
            server.server.kill()
        with archived.restore(settings, repository, to=both, timeline=1) as restore:
            restore.run()
            assert restore.ask(MARKS) == "good,bad,on the old one"
