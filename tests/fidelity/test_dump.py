"""pg_dumpall of a cluster that holds one of everything, and of the server that was restored from its backup."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dr_pipelines.processes.postgres import find_binaries
from tests import archived
from tests.archived import Restore, Source
from tests.fidelity import everything
from tests.fidelity.types import Stored

pytestmark = pytest.mark.slow

# What PostgreSQL makes for itself alone, within indexes of its own.
NO_VALUES = {"gtsvector", "gtsvector[]", "pg_brin_bloom_summary", "pg_brin_minmax_multi_summary"}
AHEAD = 32
"""So many numbers of a sequence are written into the log at once."""
DATABASES = """
    SELECT string_agg(concat_ws(' ', oid, datname, encoding, datcollate, datctype, datistemplate, datallowconn,
        datconnlimit, datacl, to_jsonb(d)->>'datlocprovider'), E'\\n' ORDER BY oid) FROM pg_database d
"""


@dataclass
class Brought:
    """The source's account of itself, and the server that was brought back."""

    restore: Restore
    source: Source
    """Which does not run any more."""
    stored: Stored
    dumped: list[str]
    """At a quiet moment."""
    before: list[str]
    """Before the sequences were used once more."""
    databases: str
    restored: list[str] = field(default_factory=list)

    def dump(self) -> list[str]:
        assert self.restore.server is not None
        return everything.dump(self.restore.server.dsn(), self.source.server.binaries)


@pytest.fixture(scope="module", params=[pytest.param(15, marks=pytest.mark.debian), 18])
def brought(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brought]:
    """Half of it is in the backup, half in the log after it. Shared: what a test changes, it changes back."""
    with archived.state() as settings:
        repository = archived.new_repository(tmp_path_factory.mktemp("repository"))
        assert find_binaries(settings, request.param).major == request.param
        more = {"wal_level": "logical", "max_prepared_transactions": "5", "autovacuum": "off"}
        with archived.source(settings, repository, major=request.param, options=more) as source:
            everything.make_first(source)
            source.back_up()
            stored = everything.make_rest(source)
            before = dump_of(source)
            use_sequences(source)
            source.do(
                "SELECT pg_create_physical_replication_slot('standby', true)",
                "SELECT pg_create_logical_replication_slot('decoder', 'pgoutput')",
            )
            source.do("BEGIN", "CREATE TABLE undecided ()", "PREPARE TRANSACTION 'undecided'", database="pattern")
            source.ship()
            dumped, databases = dump_of(source), str(source.ask(DATABASES))
            source.stop_agent()
            source.server.kill()
            with archived.restore(settings, repository) as restore:
                restore.run()
                made = Brought(restore, source, stored, dumped, before, databases)
                made.restored = made.dump()
                yield made


def dump_of(source: Source) -> list[str]:
    return everything.dump(source.server.dsn(), source.server.binaries, password=source.server.password)


def use_sequences(source: Source) -> None:
    """After the backup: one a little, one a lot, one backwards, one set; the others stay where they were."""
    source.do(
        "CREATE SEQUENCE cached CACHE 10",
        "SELECT nextval('numbers')",
        "SELECT nextval('main_id_seq') FROM generate_series(1, 100)",
        "SELECT nextval('downwards') FROM generate_series(1, 10)",
        "SELECT nextval('cached')",
        "SELECT setval('parts_seq', 77)",
        database="things",
    )


def test_the_dumps_are_the_same_but_for_the_sequences_that_were_used_since_the_backup(brought: Brought) -> None:
    assert everything.without_sequences(brought.restored) == everything.without_sequences(brought.dumped)
    assert everything.kinds_missing(brought.dumped) == set()


def test_there_is_a_value_of_every_type_of_which_postgresql_takes_one(brought: Brought) -> None:
    without_xml = {"xml", "xml[]"} if "xml" in brought.stored.without_value else set()  # built without libxml2
    assert brought.stored.without_value == NO_VALUES | without_xml
    assert len(brought.stored.with_value) > 560
    assert all("pg_" in name or name == "cstring[]" for name in brought.stored.refused)


def test_a_sequence_is_at_most_32_of_its_steps_ahead_and_only_where_it_was_used_since_the_backup(
    brought: Brought,
) -> None:
    came_back, was, before = (everything.sequences(each) for each in (brought.restored, brought.dumped, brought.before))
    steps = {"things.numbers": 5, "things.main_id_seq": 2, "things.downwards": -3, "things.cached": 1}
    assert came_back.keys() == was.keys()
    ahead = {name: came_back[name] - was[name] for name in was if came_back[name] != was[name]}
    assert ahead.keys() == steps.keys()
    assert all(0 < ahead[name] / step <= AHEAD for name, step in steps.items()), ahead
    assert {name for name in was if was[name] != before.get(name)} == {*steps, "things.parts_seq"}


def test_an_unlogged_table_comes_back_empty_and_its_sequences_begin_anew(brought: Brought) -> None:
    ask = brought.restore.ask
    assert ask("SELECT count(*) FROM things.unlogged", "things") == 0
    assert ask("SELECT nextval('things.unlogged_id_seq')", "things") == 1
    assert ask("SELECT last_value FROM things.unlogged_sequence", "things") == 100


def test_a_database_that_lets_nobody_in_comes_back_so_with_what_is_in_it(brought: Brought) -> None:
    assert brought.restore.ask(DATABASES) == brought.databases
    assert "closed" in brought.databases and " f t -1" in brought.databases
    brought.restore.do("ALTER DATABASE closed ALLOW_CONNECTIONS true")
    assert brought.restore.ask("SELECT v FROM t", "closed") == "kept"
    brought.restore.do("ALTER DATABASE closed ALLOW_CONNECTIONS false")


def test_what_the_server_knows_of_itself_and_of_others_is_as_the_page_says(brought: Brought) -> None:
    ask = brought.restore.ask
    assert ask("SELECT count(*) FROM pg_replication_slots") == 0
    assert ask("SELECT gid FROM pg_prepared_xacts") == "undecided"
    assert ask("SELECT coalesce(sum(n_tup_ins), 0) FROM pg_stat_user_tables", "things") == 0
    assert ask("SELECT count(*) > 10 FROM pg_stats WHERE schemaname = 'things'", "things") is True


def test_the_restored_server_passes_its_validation(brought: Brought) -> None:
    assert archived.failed(brought.restore.validate()) == []


@pytest.mark.parametrize(
    ("change", "back"),
    [
        ("SELECT lo_put(7003, 0, 'T')", "SELECT lo_put(7003, 0, 't')"),
        ("GRANT SELECT ON things.kept TO reader", "REVOKE ALL ON things.kept FROM reader"),
    ],
)
def test_a_difference_would_be_seen(brought: Brought, change: str, back: str) -> None:
    brought.restore.do(change, database="things")
    try:
        assert everything.without_sequences(brought.dump()) != everything.without_sequences(brought.dumped)
    finally:
        brought.restore.do(back, database="things")


def test_the_page_names_what_is_not_the_same() -> None:
    page = (Path(__file__).parents[2] / "docs" / "what-comes-back.md").read_text()
    assert f"at most {AHEAD} " in page and "Unlogged tables" in page
