"""What of the log goes: nothing that a backup which stays needs to get to any time on any timeline it leads to."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_pipelines.engines.postgres.chain import StoredSegment, follow
from dr_pipelines.engines.postgres.retention import Anchor, LogFile, Seen, decide, useless_log
from dr_pipelines.engines.postgres.wal import Lsn, Segment, Switch, kind_of
from dr_pipelines.errors import ObjectCorrupt
from dr_pipelines.plan import Retention
from dr_pipelines.repository.identifiers import timed_id
from dr_pipelines.repository.manifest import BackupSurvey, Manifest, Part, part_key

SIZE = 1 << 20
BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
Histories = dict[int, tuple[Switch, ...]]


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def name(number: int, timeline: int = 1) -> str:
    return Segment(timeline, number, SIZE).name


def lsn(number: float) -> Lsn:
    """A position so many segments into the log."""
    return Lsn(int(number * SIZE))


def file(file_name: str, minutes: float) -> LogFile:
    return LogFile(f"log/{file_name[:8]}/{file_name}", file_name, 1000, at(minutes))


def log(numbers: Iterable[int], timeline: int = 1) -> list[LogFile]:
    """Segment n, stored n minutes after the beginning."""
    return [file(name(number, timeline), number) for number in numbers]


def chunk(number: int, minutes: float, name_of_it: str = "00000000-00001000") -> LogFile:
    """A piece of a segment that is not full yet."""
    return LogFile(f"log/00000001/{name(number)}.chunks/{name_of_it}", name(number), 100, at(minutes), chunk=True)


def anchor(number: int, timeline: int = 1) -> Anchor:
    return Anchor(lsn(number + 0.1), Segment(timeline, number, SIZE))


def goes(
    files: Sequence[LogFile], anchors: Sequence[Anchor], histories: Histories | None = None, before: float = 0
) -> list[str]:
    found = useless_log(files, anchors, histories or {}, at(before), stale=at(before))
    return [each.key.removeprefix("log/00000001/") if each.chunk else each.name for each in found]


class TestTheLogBeforeABackup:
    def test_goes_oldest_first(self) -> None:
        assert goes(list(reversed(log(range(1, 9)))), [anchor(5), anchor(7)]) == [name(n) for n in (1, 2, 3, 4)]

    def test_goes_with_notes_and_partial_segments(self) -> None:
        others = [f"{name(n)}{ending}" for n in (4, 5) for ending in (".00000028.backup", ".partial")]
        found = goes([*log(range(3, 7)), *(file(other, 3) for other in others)], [anchor(5)])
        assert found == [name(3), name(4), *others[:2]]

    def test_stays_where_another_timeline_is_all_that_goes_on_from_the_backup(self) -> None:
        files = [*log(range(1, 9)), *log(range(6, 9), 2), file("00000002.history", 6)]
        assert goes(files, [anchor(5)], {2: (Switch(1, lsn(6.5), ""),)}) == [name(n) for n in (1, 2, 3, 4)]


class TestATimelineToWhichNoBackupLeads:
    histories = {2: (Switch(1, lsn(3.5), ""),), 3: (Switch(1, lsn(3.5), ""), Switch(2, lsn(6.5), ""))}

    def test_goes_as_far_as_it_is_older_than_every_backup_that_stays(self) -> None:
        files = [*log(range(1, 12)), *log(range(3, 7), 2)]
        assert goes(files, [anchor(7, 2)], self.histories, before=9) == [
            *(name(n) for n in (1, 2)),
            *(name(n, t) for n in (3, 4, 5, 6) for t in (1, 2)),
            *(name(n) for n in (7, 8)),
        ]

    def test_stays_where_it_is_younger_since_its_backup_may_be_yet_to_come(self) -> None:
        files = [*log(range(1, 6)), *log(range(3, 9), 2)]
        assert goes(files, [anchor(5)], {2: (Switch(1, lsn(3.5), ""),)}, before=5) == [
            *(name(n) for n in (1, 2)),
            *(name(n, t) for n in (3, 4) for t in (1, 2)),
        ]

    def test_is_one_whose_history_is_not_there(self) -> None:
        files = [*log(range(1, 6)), *log(range(5, 9), 2)]
        assert goes(files, [anchor(4)], before=7) == [name(1), name(2), name(3), name(5, 2), name(6, 2)]


class TestAHistory:
    def test_stays_as_long_as_log_of_a_later_timeline_does(self) -> None:
        files = [file("00000002.history", 1), file("00000003.history", 2), *log(range(9, 12), 3)]
        assert goes(files, [anchor(9, 3)], before=9) == []

    def test_goes_with_the_last_log_of_its_timeline(self) -> None:
        files = [*log(range(5, 8)), file("00000002.history", 1), *log(range(1, 3), 2)]
        assert goes(files, [anchor(5)], {2: (Switch(1, lsn(1.5), ""),)}, before=5) == [
            name(1, 2),
            name(2, 2),
            "00000002.history",
        ]

    def test_of_a_timeline_that_has_just_begun_stays(self) -> None:
        files = [*log(range(5, 8)), file("00000002.history", 6)]
        assert goes(files, [anchor(5)], {2: (Switch(1, lsn(1.5), ""),)}, before=5) == []


class TestAChunk:
    def test_goes_as_its_segment_would(self) -> None:
        files = [chunk(2, 2), chunk(3, 3), chunk(3, 3, "00001000-00002000"), *log([4]), chunk(5, 5)]
        assert goes(files, [anchor(4)], before=9) == [
            f"{name(2)}.chunks/00000000-00001000",
            f"{name(3)}.chunks/00000000-00001000",
            f"{name(3)}.chunks/00001000-00002000",
        ]

    def test_goes_where_the_segment_is_stored_whole_for_long(self) -> None:
        files = [*log([4, 5]), chunk(4, 4), chunk(5, 5), chunk(6, 4)]
        assert goes(files, [anchor(4)], before=5) == [f"{name(4)}.chunks/00000000-00001000"]


def test_what_postgresql_does_not_archive_is_left_alone() -> None:
    assert goes([file("README", 0), file("0000000100000000000000AA.chunk", 0), *log([1, 2])], [anchor(2)]) == [name(1)]


def backup(minutes: float, first: int, last: int, timeline: int = 1, system: str = "1", parts: int = 1) -> Manifest:
    """A complete backup that took the minute before, and needs these segments."""
    backup_id = timed_id("full", at(minutes))
    return Manifest(
        backup_id=backup_id,
        service="database",
        engine="postgres",
        system_identifier=system,
        server_version="18.6",
        tool_version="1",
        started_at=at(minutes - 1),
        stopped_at=at(minutes),
        files=(),
        parts=tuple(
            Part(
                key=part_key(backup_id, number),
                codec="zstd",
                encryption="none",
                stored_sha256="0" * 64,
                stored_size=10,
                raw_size=0,
                ranges=(),
            )
            for number in range(parts)
        ),
        details={
            "start_lsn": str(lsn(first + 0.1)),
            "stop_lsn": str(lsn(last + 0.5)),
            "timeline": timeline,
            "wal_segment_size": SIZE,
        },
    )


def seen(
    backups: Sequence[Manifest],
    files: Sequence[LogFile],
    histories: Histories | None = None,
    *,
    system: str = "1",
    heard: float | None = None,
) -> Seen:
    """A cluster whose backups have all their parts."""
    survey = BackupSurvey(tuple(sorted(backups, key=lambda each: each.stopped_at, reverse=True)), (), (), ())
    return Seen(
        system_identifier=system,
        survey=survey,
        objects={part.key: 110 for each in backups for part in each.parts},
        log=tuple(files),
        histories=histories or {},
        heard_at=at(heard) if heard is not None else None,
        used_by={},
    )


NOW = at(60)
ONE = Retention(keep=1)


class TestABackupIsNotGood:
    """As far as a listing shows, and then the one before it counts as the newest."""

    def problem(self, cluster: Seen, now: datetime = NOW) -> str:
        newest, older = decide("database", ONE, [cluster], now).backups
        assert newest.stays and older.stays
        assert newest.backup.problem is not None
        return newest.backup.problem

    @pytest.fixture
    def cluster(self) -> Seen:
        return seen([backup(5, 4, 5), backup(12, 11, 12, parts=2)], log(range(1, 20)))

    def test_unless_nothing_is_missing(self, cluster: Seen) -> None:
        assert [each.stays for each in decide("database", ONE, [cluster], NOW).backups] == [True, False]

    def test_without_a_part(self, cluster: Seen) -> None:
        key = cluster.survey.complete[0].parts[1].key
        objects = {other: size for other, size in cluster.objects.items() if other != key}
        assert self.problem(replace(cluster, objects=objects)) == f"{key} is missing"

    def test_with_a_part_that_is_truncated(self, cluster: Seen) -> None:
        key = cluster.survey.complete[0].parts[1].key
        said = self.problem(replace(cluster, objects={**cluster.objects, key: 9}))
        assert said == f"{key} is truncated: 9 bytes"

    @pytest.mark.parametrize("lost", [11, 12])
    def test_without_a_segment_that_it_needs_to_be_consistent(self, cluster: Seen, lost: int) -> None:
        files = tuple(each for each in cluster.log if each.name != name(lost))
        assert name(lost) in self.problem(replace(cluster, log=files))

    def test_from_a_time_that_is_yet_to_come(self, cluster: Seen) -> None:
        assert "a clock is wrong" in self.problem(cluster, at(12) - timedelta(hours=2))

    def test_whose_manifest_is_refused(self, cluster: Seen) -> None:
        damaged = ((cluster.survey.complete[0].backup_id, ObjectCorrupt("its hash does not match")),)
        survey = replace(cluster.survey, complete=cluster.survey.complete[1:], damaged=damaged)
        assert self.problem(replace(cluster, survey=survey)) == "its hash does not match"


class TestAChain:
    """A full backup at 5 minutes, incremental ones at 12 and 20, another full one at 30."""

    @pytest.fixture
    def cluster(self) -> Seen:
        full, *rest, other = (backup(m, m - 1, m) for m in (5, 12, 20, 30))
        chain = [full]
        for each in rest:
            update = {"kind": "incremental", "format_version": 2, "parent": chain[-1].backup_id}
            chain.append(each.model_copy(update=update))
        return seen([*chain, other], log(range(1, 40)))

    def stay(self, cluster: Seen, retention: Retention) -> list[int]:
        expiry = decide("database", retention, [cluster], NOW)
        return [each.backup.ended_at.minute for each in expiry.backups if each.stays and each.backup.ended_at]

    def test_stays_whole_with_its_log_as_one_full_backup(self, cluster: Seen) -> None:
        assert self.stay(cluster, ONE) == [30]
        assert self.stay(cluster, Retention(keep=2)) == [30, 20, 12, 5]

    def test_stays_as_far_as_a_moment_depends_on_it(self, cluster: Seen) -> None:
        kept = Retention(keep_for=timedelta(minutes=45))
        assert self.stay(cluster, kept) == [30, 20, 12, 5]
        expiry = decide("database", kept, [cluster], NOW)
        # Its full backup lists, so it restores.
        assert [each.name for each in expiry.log["1"]] == [name(1), name(2), name(3)]

    def test_goes_from_its_end(self, cluster: Seen) -> None:
        going = decide("database", ONE, [cluster], NOW).going
        assert [each.ended_at.minute for each in going if each.ended_at] == [20, 12, 5]

    def test_goes_from_its_end_whatever_the_clocks_said(self, cluster: Seen) -> None:
        early = cluster.survey.complete[1].model_copy(update={"stopped_at": at(2), "started_at": at(1)})
        survey = replace(cluster.survey, complete=(cluster.survey.complete[0], early, *cluster.survey.complete[2:]))
        going = decide("database", ONE, [replace(cluster, survey=survey)], NOW).going
        assert [each.ended_at.minute for each in going if each.ended_at] == [2, 12, 5]

    def test_that_is_broken_counts_for_nothing(self, cluster: Seen) -> None:
        survey = replace(cluster.survey, complete=cluster.survey.complete[1:])
        broken = replace(survey, complete=tuple(each for each in survey.complete if each.stopped_at != at(12)))
        expiry = decide("database", ONE, [replace(cluster, survey=broken)], NOW)
        assert [each.stays for each in expiry.backups] == [True, True]
        assert "which it depends on, is missing" in expiry.backups[0].why


class TestAClusterThatTheServiceHadBefore:
    @pytest.fixture
    def clusters(self) -> list[Seen]:
        left: Histories = {2: (Switch(1, lsn(8.5), ""),)}
        old = seen([backup(5, 4, 5, system="1")], [*log(range(1, 9)), file("00000002.history", 2)], left, heard=9)
        new = seen([backup(m, m - 1, m, system="2") for m in (12, 20)], log(range(10, 25)), system="2", heard=60)
        return [old, new]

    def test_stays_with_its_log_while_its_backup_is_one_of_those_that_do(self, clusters: list[Seen]) -> None:
        expiry = decide("database", Retention(keep=3), clusters, NOW)
        assert (expiry.going, expiry.over) == ((), ())
        assert {system: [each.name for each in files] for system, files in expiry.log.items()} == {
            "1": [name(1), name(2), name(3)],
            "2": [name(10)],
        }

    def test_goes_whole_when_none_does(self, clusters: list[Seen]) -> None:
        expiry = decide("database", Retention(keep=2), clusters, NOW)
        assert [each.system_identifier for each in expiry.going] == ["1"]
        assert expiry.over == ("1",)
        assert len(expiry.log["1"]) == 9

    def test_is_not_over_while_an_agent_reports_of_it(self, clusters: list[Seen]) -> None:
        clusters[0] = replace(clusters[0], heard_at=NOW)
        assert decide("database", Retention(keep=2), clusters, NOW).over == ()


def test_a_cluster_that_has_no_backup_yet_is_left_alone() -> None:
    clusters = [seen([backup(5, 4, 5)], log(range(4, 9))), seen([], log(range(6, 9)), system="2", heard=8)]
    expiry = decide("database", ONE, clusters, NOW)
    assert (expiry.going, expiry.log, expiry.over) == ((), {}, ())


def test_without_a_backup_nothing_goes() -> None:
    expiry = decide("database", ONE, [seen([], log(range(6, 9)))], NOW)
    assert (expiry.going, expiry.log, expiry.over) == ((), {}, ())


@dataclass(frozen=True)
class Branch:
    """A timeline: from where it left its parent, the segments that are stored of it."""

    timeline: int
    path: tuple[Switch, ...]
    first: int
    last: int


@st.composite
def clusters(draw: st.DrawFn) -> Seen:
    """Up to four timelines that leave one another anywhere, with some backups on each."""
    branches = [Branch(1, (), draw(st.integers(0, 3)), draw(st.integers(8, 30)))]
    for timeline in range(2, draw(st.integers(1, 4)) + 1):
        parent = draw(st.sampled_from(branches))
        left = draw(st.integers(parent.first * 4, (parent.last + 1) * 4)) / 4
        path = (*parent.path, Switch(parent.timeline, lsn(left), ""))
        branches.append(Branch(timeline, path, int(left), int(left) + draw(st.integers(0, 20))))
    files: list[LogFile] = []
    backups: list[Manifest] = []
    for branch in branches:
        # A later timeline was written later, whatever its positions.
        age = branch.timeline * 100
        files += [file(name(n, branch.timeline), age + n) for n in range(branch.first, branch.last + 1)]
        if branch.path:
            files.append(file(f"{branch.timeline:08X}.history", age))
        for start in draw(st.sets(st.integers(branch.first, branch.last), max_size=3)):
            stop = min(start + draw(st.integers(0, 2)), branch.last)
            backups.append(backup(age + stop + 0.5 + start / 100, start, stop, branch.timeline))
    # Some of it is missing.
    lost = draw(st.sets(st.sampled_from([each.name for each in files if kind_of(each.name) != "history"]), max_size=2))
    return seen(
        backups,
        [each for each in files if each.name not in lost],
        {branch.timeline: branch.path for branch in branches if branch.path},
    )


def replayed(cluster: Seen, manifest: Manifest, timeline: int) -> list[str]:
    """By the definition: what is stored of the log that a replay from the backup can come by on the way there."""
    own, start = (
        int(manifest.details["timeline"]),
        Segment.holding(Lsn.parse(str(manifest.details["start_lsn"])), 1, SIZE),
    )
    path = cluster.histories.get(timeline, ())
    begins = {past.timeline: before.at for before, past in itertools.pairwise(path)}
    if path:
        begins[timeline] = path[-1].at
    reads = []
    for each in cluster.log:
        if kind_of(each.name) != "segment":
            continue
        segment = Segment.of_name(each.name, SIZE)
        on_the_way = segment.timeline >= own and segment.timeline in {timeline, *(past.timeline for past in path)}
        begun = segment.timeline == own or segment.end > begins.get(segment.timeline, Lsn(0))
        if on_the_way and begun and segment.number >= start.number:
            reads.append(each.name)
    return reads


def leads_to(cluster: Seen, manifest: Manifest, timeline: int) -> bool:
    own, stop = int(manifest.details["timeline"]), Lsn.parse(str(manifest.details["stop_lsn"]))
    return timeline == own or any(p.timeline == own and p.at >= stop for p in cluster.histories.get(timeline, ()))


@settings(max_examples=300)
@given(clusters(), st.none() | st.integers(1, 3), st.none() | st.floats(1, 400))
def test_no_backup_that_stays_loses_what_it_needs(cluster: Seen, keep: int | None, minutes: float | None) -> None:
    keep = keep if keep is not None or minutes is not None else 1
    span = timedelta(minutes=minutes) if minutes is not None else None
    expiry = decide("database", Retention(keep=keep, keep_for=span), [cluster], at(500))
    going = {each.name for each in expiry.log.get("1", ())}
    after = replace(cluster, log=tuple(each for each in cluster.log if each.name not in going))
    stays = {each.backup.backup_id for each in expiry.backups if each.stays}
    for manifest in cluster.survey.complete:
        if manifest.backup_id not in stays:
            continue
        for timeline in {1, *cluster.histories}:
            if leads_to(cluster, manifest, timeline):
                assert replayed(after, manifest, timeline) == replayed(cluster, manifest, timeline)
                assert timeline not in cluster.histories or f"{timeline:08X}.history" not in going
        assert chain(after, manifest) == chain(cluster, manifest)


def chain(cluster: Seen, manifest: Manifest) -> tuple[str, ...]:
    """What a restore to the latest point takes."""
    segments = [
        StoredSegment(each.name, each.stored_bytes, each.stored_at)
        for each in cluster.log
        if kind_of(each.name) == "segment"
    ]
    start = Lsn.parse(str(manifest.details["start_lsn"]))
    return follow(start, int(manifest.details["timeline"]), SIZE, segments, cluster.histories).files
