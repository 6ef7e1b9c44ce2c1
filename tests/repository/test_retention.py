"""Which backups stay: by number, by age, never the last good one, never what another one depends on."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dr_pipelines.plan import Retention
from dr_pipelines.repository.retention import Held, Judged, judge

NOW = datetime(2026, 3, 31, 12, tzinfo=UTC)


def held(days: float, name: str = "", **more: object) -> Held:
    """A backup that ended so many days ago, called by that unless it has a name."""
    fields: dict[str, object] = {
        "backup_id": name or f"{days}",
        "system_identifier": "1",
        "kind": "full",
        "ended_at": NOW - timedelta(days=days),
    }
    return Held(**{**fields, **more})  # type: ignore[arg-type]


def stay(backups: Sequence[Held], keep: int | None = None, days: float | None = None) -> list[str]:
    """The names of those that stay, newest first."""
    return [each.backup.backup_id for each in _judge(backups, keep, days) if each.stays]


def _judge(backups: Sequence[Held], keep: int | None = None, days: float | None = None) -> tuple[Judged, ...]:
    span = timedelta(days=days) if days is not None else None
    return judge(backups, Retention(keep=keep, keep_for=span), NOW)


DAILY = [held(days) for days in (4, 2, 0, 3, 1)]


class TestByNumber:
    def test_the_newest_stay(self) -> None:
        assert stay(DAILY, 2) == ["0", "1"]

    def test_fewer_than_that_all_stay(self) -> None:
        assert len(stay(DAILY, 9)) == 5

    def test_those_of_the_cluster_that_was_replaced_go_as_the_new_ones_come(self) -> None:
        old = [held(days, system_identifier="2") for days in (5, 6, 7)]
        assert stay([*DAILY[:2], *old], 3) == ["2", "4", "5"]
        assert stay([*DAILY, *old], 3) == ["0", "1", "2"]

    def test_incrementals_are_not_counted_and_stay_with_their_full(self) -> None:
        chain = [held(0, "c", kind="incremental", parent="b"), held(1, "b", kind="incremental", parent="a")]
        assert stay([*chain, held(2, "a"), held(3)], 1) == ["c", "b", "a"]
        assert stay([*chain, held(2, "a"), held(3), held(4)], 2) == ["c", "b", "a", "3"]


class TestByAge:
    def test_what_leads_to_the_beginning_of_the_span_stays(self) -> None:
        assert stay(DAILY, days=2.5) == ["0", "1", "2", "3"]

    def test_one_that_is_exactly_so_old_leads_there(self) -> None:
        assert stay(DAILY, days=2) == ["0", "1", "2"]

    def test_the_newest_stays_however_old(self) -> None:
        assert stay([held(100), held(200)], days=30) == ["100"]

    def test_an_incremental_keeps_what_it_depends_on_and_nothing_else_of_its_chain(self) -> None:
        chain = [
            held(3, "a"),
            *(held(day, n, kind="incremental", parent=p) for day, n, p in ((2, "b", "a"), (1, "c", "a"))),
        ]
        assert stay(chain, days=1) == ["c", "a"]


def test_it_goes_only_where_neither_keeps_it() -> None:
    assert stay(DAILY, 2, 3) == ["0", "1", "2", "3"]
    assert stay(DAILY, 5, 1) == ["0", "1", "2", "3", "4"]


class TestOneThatIsNotGood:
    damaged = held(0.5, "damaged", problem="a part is missing")

    def test_takes_nobodys_place(self) -> None:
        assert stay([self.damaged, *DAILY], 2) == ["0", "damaged", "1"]

    def test_is_never_the_last_that_stays(self) -> None:
        assert stay([held(0, problem="damaged"), held(30), held(40)], 1) == ["0", "30"]

    def test_goes_when_every_good_one_that_stays_is_younger(self) -> None:
        judged = {each.backup.backup_id: each for each in _judge([self.damaged, *DAILY], 1)}
        assert not judged["damaged"].stays
        assert "not good" in judged["damaged"].why and "a part is missing" in judged["damaged"].why

    def test_stays_where_none_is_good(self) -> None:
        assert len(stay([held(day, problem="damaged") for day in range(5)], 1, 1)) == 5

    def test_stays_where_nothing_says_when_it_was_made(self) -> None:
        assert stay([*DAILY, held(0, "odd", ended_at=None, problem="damaged")], 1) == ["0", "odd"]

    def test_makes_what_depends_on_it_not_good(self) -> None:
        chain = [held(1, "b", kind="incremental", parent="a"), held(2, "a", problem="damaged"), held(3), held(4)]
        assert stay(chain, 1) == ["b", "a", "3"]
        assert stay([held(1, "b", kind="incremental", parent="gone"), held(2)], 1) == ["b", "2"]


def test_what_a_restore_reads_stays_with_what_that_depends_on() -> None:
    chain = [held(8, "b", kind="incremental", parent="a", used_by=("restore-1",)), held(9, "a"), held(10)]
    judged = {each.backup.backup_id: each for each in _judge([*DAILY, *chain], 1)}
    assert [name for name, each in judged.items() if each.stays] == ["0", "b", "a"]
    assert "restore-1" in judged["b"].why
    assert "b depends on it" in judged["a"].why


@pytest.mark.parametrize("days", [0.001, 4000000.0])
def test_a_span_of_any_length_is_understood(days: float) -> None:
    assert "0" in stay(DAILY, days=days)


@st.composite
def rows(draw: st.DrawFn) -> list[Held]:
    """Backups of two clusters, some damaged, some read, with incrementals that depend on any older one."""
    made: list[Held] = []
    for days in sorted(draw(st.sets(st.integers(0, 60), max_size=12)), reverse=True):
        system = draw(st.sampled_from("12"))
        older = [None, *(each.backup_id for each in made if each.system_identifier == system)]
        parent = draw(st.sampled_from(older))
        made.append(
            held(
                days,
                system_identifier=system,
                kind="incremental" if parent else "full",
                parent=parent,
                problem=draw(st.sampled_from([None, None, None, "damaged"])),
                used_by=draw(st.sampled_from([(), (), (), ("restore",)])),
            )
        )
    return draw(st.permutations(made))


@given(rows(), st.none() | st.integers(1, 5), st.none() | st.floats(0.5, 50))
def test_whatever_there_is(backups: list[Held], keep: int | None, days: float | None) -> None:
    keep = keep if keep is not None or days is not None else 1
    judged = _judge(backups, keep, days)
    known = {each.backup_id: each for each in backups}
    kept = {each.backup.backup_id for each in judged if each.stays}

    def is_good(each: Held) -> bool:
        return each.problem is None and (each.parent is None or is_good(known[each.parent]))

    good = sorted((each for each in backups if is_good(each)), key=lambda each: each.ended_at or NOW, reverse=True)
    fulls = [each.backup_id for each in good if each.kind == "full"]
    assert sorted(each.backup.backup_id for each in judged) == sorted(known)
    # The newest good one, so many fulls, and whatever a restore reads.
    assert {each.backup_id for each in good[:1]} <= kept
    assert set(fulls[: keep or 0]) <= kept
    assert {each.backup_id for each in backups if each.used_by} <= kept
    # Nothing that is good stays without what it depends on.
    assert {each.parent for each in good if each.backup_id in kept} - {None} <= kept
    if days is not None:
        # Whatever moment of the span could be restored to still can, from the same backup.
        for hours in range(0, int(days * 24), 7):
            moment = NOW - timedelta(hours=hours)
            leads = [each.backup_id for each in good if each.ended_at and each.ended_at <= moment]
            assert set(leads[:1]) <= kept
    if not good:
        assert kept == set(known)
