"""What `scripts/backup.sh wal` takes for a segment, beside `cp` and `fsync`; and whether the agent keeps up."""

import json
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.database import Database, database, rows
from benchmarks.measuring import verdict
from benchmarks.storage import on_s3
from dr_pipelines.agent.spool import Spool
from dr_pipelines.engines.postgres.connection import connect
from dr_pipelines.processes.identity import credentials, give_to

__all__ = ["run"]

_SEGMENT = 16 << 20
_A_MINUTE = 50
_LIMIT = 15.0
_IN_SPOOL = 2
_PLAIN = "cp {source} {spool}/{name} && sync {spool}/{name} {spool}"
_TOGETHER = """\
The commands take turns, segment by segment, each called as PostgreSQL calls it (`sh -c`, as the server's user, in the
data directory); {segments} segments of 16 MiB, in the page cache as the server has just written them.

| | milliseconds, median | fastest to slowest |
|---|---|---|
| `cp` + `sync` of file and folder | {plain:.1f} | {plain_spread} |
| `backup.sh wal` | {ours:.1f} | {ours_spread} |
| over `cp` + `sync` | {over:.1f}: {over_verdict} | |

PostgreSQL writes and ends {a_minute} segments a minute for {minutes:g} minutes, the agent ships them to S3 on this
machine. Of {looks} looks into the spool {filled:.0%} found a segment, and none more than {most}: {most_verdict}; {left}
were left 2 seconds after the last. From a segment's arrival in the spool until it is in the repository: {lag:.2f} s
(median)."""


def run(folder: Path, segments: int, major: int) -> str:
    """Measure and return the section; the second part takes as long as so many segments do at that rate."""
    with on_s3(folder) as settings, database(folder / "database", 0, major, settings) as made:
        plain, ours = _compare(made, segments)
        kept = _keep_up(made, segments)
    over = statistics.median(ours) - statistics.median(plain)
    return _TOGETHER.format(
        segments=segments,
        plain=statistics.median(plain),
        plain_spread=_spread(plain),
        ours=statistics.median(ours),
        ours_spread=_spread(ours),
        over=over,
        over_verdict=verdict(over, _LIMIT),
        a_minute=_A_MINUTE,
        minutes=segments / _A_MINUTE,
        looks=len(kept.counts),
        filled=sum(count > 0 for count in kept.counts) / len(kept.counts),
        most=max(kept.counts),
        most_verdict=verdict(max(kept.counts), _IN_SPOOL),
        left=kept.left,
        lag=kept.lag,
    )


def _compare(made: Database, segments: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each call of both."""
    source = made.folder / "segment"
    source.write_bytes(rows(_SEGMENT + 4096)[:_SEGMENT])
    place = made.folder / "compared"
    place.mkdir()
    for path in (source, place):
        give_to(path, made.identity)
    plain: list[float] = []
    ours: list[float] = []
    for number in range(segments):
        name = f"0000000100000001{number:08X}"
        turns = [
            (plain, _PLAIN.format(source=source, spool=place, name=name)),
            (ours, f"DR_SPOOL={place} {made.folder}/backup.sh wal {source} {name}"),
        ]
        for found, command in turns if number % 2 else reversed(turns):
            began = time.perf_counter()
            subprocess.run(["/bin/sh", "-c", command], cwd=made.data, check=True, **credentials(made.identity))
            found.append(1000 * (time.perf_counter() - began))
            (place / name).unlink()
    return plain, ours


@dataclass(frozen=True)
class _Kept:
    counts: list[int]
    left: int
    lag: float


def _keep_up(made: Database, segments: int) -> _Kept:
    """Write segments at the rate, and look into the spool all the time."""
    counts: list[int] = []
    spool = Spool(made.spool)
    body = rows(_SEGMENT - (1 << 20)).decode()

    def look() -> None:
        counts.append(len(spool.scan()[0]))

    with connect(made.dsn) as connection:
        began = time.monotonic()
        for number in range(segments):
            connection.execute("SELECT pg_logical_emit_message(false, 'benchmark', %s)", (body,))
            connection.execute("SELECT pg_switch_wal()")
            due = began + (number + 1) * 60 / _A_MINUTE
            while time.monotonic() < due:
                look()
                time.sleep(0.02)
    time.sleep(2)
    return _Kept(counts, len(spool.scan()[0]), _lag(made.folder / "agent.log"))


def _lag(log: Path) -> float:
    """Seconds from a segment's arrival in the spool until the agent had stored it, as the agent's log has them."""
    said = [json.loads(line) for line in log.read_text().splitlines()]
    return statistics.median(float(line["age"]) for line in said if line["event"] == "shipped")


def _spread(milliseconds: list[float]) -> str:
    return f"{min(milliseconds):.1f} to {max(milliseconds):.1f}"
