"""Random kills of backups, agents, restores and expiries for as long as one likes: `make test-long`.

python -m tests.faults.long --kills 100 --seed 1 --minutes 40 --out docs/test-long

Each kill is drawn from the seed and its number alone. The result is written after each one, to OUT.json and OUT.md; a
run with the same seed goes on after the last one that is there. Exit code 1 where anything was found.
"""

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from dr_pipelines.engines.postgres.expiry import expire
from dr_pipelines.engines.postgres.verify import verify
from dr_pipelines.plan import Retention
from dr_pipelines.repository.manifest import survey_backups
from dr_pipelines.timing import SystemClock, wait_until
from tests import archived
from tests.archived import Source
from tests.faults.conftest import ROOT

LONGEST: Mapping[str, float] = {"backup": 1.0, "incremental": 1.0, "agent": 0.8, "restore": 4.0, "expire": 0.15}
"""Seconds within which each kind is killed; what has ended before was not hit, and is told as such."""
ROWS = "SELECT count(*) FROM counted"


class Kills:
    """One server with its log, and processes that work on it and are killed."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder

    def kill(self, kind: str, after: float, arguments: tuple[str, ...] = ()) -> str:
        """Start it, kill it after so many seconds, and say what it was doing."""
        trace = self.folder / "trace"
        trace.unlink(missing_ok=True)
        own = {"DR_DSN__DATABASE": self.source.server.dsn(), "DR_SPOOL__DATABASE": str(self.source.spool)}
        base = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "DR_TEST_TRACE": str(trace)}
        with (self.folder / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.child", kind, *arguments],
                cwd=ROOT,
                env=base | self.source.settings.as_environment() | own,
                stdout=log,
                stderr=log,
            )
        # What it takes to start is no time of its work.
        wait_until(lambda: trace.exists() or process.poll() is not None, timeout=30, interval=0.005)
        try:
            ended = process.wait(after)
            assert ended == 0, (self.folder / "log").read_text()[-500:]
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            return "had ended"
        last = trace.read_text().splitlines()[-1] if trace.exists() else "its start"
        return last.replace(self.source.system, "<system>")

    def backup(self, after: float, kind: Literal["full", "incremental"] = "full") -> str:
        where = self.kill("backup", after, (kind,))
        self.complete_ones_are_sound()
        self.source.take_backup(kind=kind)
        assert survey_backups(self.source.store).incomplete == ()
        return where

    def incremental(self, after: float) -> str:
        self.write()
        return self.backup(after, "incremental")

    def agent(self, after: float) -> str:
        with self.source.without_agent():
            for _ in range(4):
                self.write()
            where = self.kill("agent", after)
        self.source.ship()
        assert self.source.position().problem is None
        return where

    def restore(self, after: float) -> str:
        self.source.ship()
        with archived.restore(self.source.settings, self.source.repository) as restore:
            where = self.kill("restore", after, (restore.execution.id,))
            restore.run()
            found, expected = restore.ask(ROWS), self.source.ask(ROWS)
            assert found == expected, f"{found} rows came back of {expected}"
            assert archived.failed(restore.validate()) == []
        return where

    def expire(self, after: float) -> str:
        newest = self.source.back_up().backup_id
        # More changes than there are: it is killed by time alone.
        where = self.kill("expire", after, ("1000000",))
        self.complete_ones_are_sound()
        expire(archived.SERVICE, self.source.repository, Retention(keep=1), clock=SystemClock())
        # What it keeps beside the newest are those that killed restores may yet go on with, and what they are based on.
        survey = survey_backups(self.source.store)
        assert newest in {backup.backup_id for backup in survey.complete}, "the newest backup is gone"
        assert survey.incomplete == (), survey.incomplete
        self.complete_ones_are_sound()
        return where

    def write(self) -> None:
        self.source.do("INSERT INTO counted SELECT generate_series(1, 2000)", "SELECT pg_switch_wal()")

    def complete_ones_are_sound(self) -> None:
        survey = survey_backups(self.source.store)
        assert survey.damaged == (), survey.damaged
        for manifest in survey.complete[:2]:
            found = verify(self.source.store, manifest, workers=2, progress=lambda *_: None)
            bad = [check for check in found.checks if not check.passed]
            assert not bad, bad


def carry_out(seed: int, number: int, kills: Kills) -> dict[str, Any]:
    """The kill of this number."""
    draw = random.Random(f"{seed} {number}")
    kind = draw.choice(sorted(LONGEST))
    after = draw.uniform(0, LONGEST[kind])
    began = time.monotonic()
    act: Callable[[float], str] = getattr(kills, kind)
    entry: dict[str, Any] = {"number": number, "kind": kind, "after_seconds": round(after, 3)}
    try:
        entry["where"] = act(after)
        entry["found"] = None
    # Whatever it is, it is what this run is there to find, and the next kill goes on.
    except Exception as error:
        entry |= {"where": "", "found": f"{type(error).__name__}: {error}"[:1000]}
    return entry | {"seconds": round(time.monotonic() - began, 1)}


def told(done: dict[str, Any]) -> str:
    """The result for people."""
    entries = done["kills"]
    found = [entry for entry in entries if entry["found"]]
    hit = [entry for entry in entries if entry["where"] != "had ended"]
    lines = [
        "# Random kills",
        "",
        "Written by `make test-long`. A process is killed with SIGKILL at a random moment; then what lists as complete",
        "is read back, the next run goes on or cleans up, and for restores every row is counted.",
        "",
        f"Seed {done['seed']}, {len(entries)} kills, {len(hit)} of them while it worked, {len(found)} with a finding; "
        f"{sum(entry['seconds'] for entry in entries) / 60:.0f} minutes, {done['at']}, {done['on']}.",
        "",
        "| killed | times | while it worked | found |",
        "|---|---|---|---|",
    ]
    for kind, count in sorted(Counter(entry["kind"] for entry in entries).items()):
        working = sum(entry["kind"] == kind for entry in hit)
        bad = sum(entry["kind"] == kind for entry in found)
        lines.append(f"| {kind} | {count} | {working} | {bad or 'nothing'} |")
    lines += ["", "| where it hit | times |", "|---|---|"]
    places = Counter(f"{entry['kind']}: {place(entry['where'])}" for entry in hit)
    lines += [f"| {name} | {count} |" for name, count in sorted(places.items())]
    lines += [f"\n{entry['number']}. {entry['kind']}: {entry['found']}" for entry in found]
    return "\n".join(lines) + "\n"


def place(where: str) -> str:
    """What it was doing, without the names that differ each time."""
    for sign, name in (
        ("/parts/", "a part"),
        ("manifest.json", "the manifest"),
        ("position.json", "the position"),
        ("locks/", "the lock"),
        ("events/", "the journal"),
        ("log/", "the log"),
    ):
        if sign in where:
            return f"{where.partition(' ')[0]}: {name}"
    return " ".join(word for word in where.split() if not any(character.isdigit() for character in word)) or "start"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--minutes", type=float, default=40, help="no kill begins after these")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "test-long")
    wanted = parser.parse_args()
    result = wanted.out.with_suffix(".json")
    done: dict[str, Any] = {"seed": wanted.seed, "kills": []}
    if result.exists() and (earlier := json.loads(result.read_text()))["seed"] == wanted.seed:
        done = earlier
    there = len(done["kills"])
    print(
        f"seed {wanted.seed}, {wanted.kills} kills, at most {wanted.minutes:g} minutes; {there} are there", flush=True
    )
    until = time.monotonic() + 60 * wanted.minutes
    with ExitStack() as stack:
        settings = stack.enter_context(archived.state())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = archived.new_repository(folder / "repository")
        own = settings.model_copy(update={"repository": repository.url, "part_size": 1 << 18})
        source = stack.enter_context(archived.source(own, repository, options={"summarize_wal": "on"}))
        source.do("CREATE TABLE counted (n int)")
        source.back_up()
        kills = Kills(source, folder)
        while len(done["kills"]) < wanted.kills and time.monotonic() < until:
            entry = carry_out(wanted.seed, len(done["kills"]), kills)
            print(json.dumps(entry), flush=True)
            done["kills"].append(entry)
            done |= {"at": f"{datetime.now(UTC):%Y-%m-%d}", "on": f"{platform.system()} {platform.release()}"}
            result.write_text(json.dumps(done, indent=1) + "\n")
            result.with_suffix(".md").write_text(told(done))
    return 1 if any(entry["found"] for entry in done["kills"]) else 0


if __name__ == "__main__":
    sys.exit(main())
