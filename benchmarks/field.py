"""Backup and restore beside the commands that a team would use instead, in interleaved rounds."""

import shlex
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.database import SERVICE, Database, database
from benchmarks.measuring import Measured, measure, median, spread
from dr_pipelines.timing import format_bytes

__all__ = ["run"]

COPY, DUMP, BACKUP = "cp -r + sync", "pg_basebackup | zstd -1 -T2", "dr backup"
UNPACK, RESTORE = "zstd -d | tar x + sync", "dr restore (files)"
_AGAINST = {BACKUP: DUMP, RESTORE: COPY, UNPACK: COPY, DUMP: COPY}
_NOTE = """\
`dr backup` includes hashing every part with SHA-256 and waiting until the log that the backup needs is in the
repository; `dr restore (files)` includes checking every part's hash and pg_verifybackup. All end with their data on
disk. Peak memory is that of all processes that the command starts, added up."""


def run(folder: Path, size_bytes: int, rounds: int, major: int, *, until: float = float("inf")) -> str:
    """Measure and return the section; no round begins after `until`, by the monotonic clock."""
    found: dict[str, list[Measured]] = defaultdict(list)
    with database(folder / "field", size_bytes, major) as made:
        for number in range(rounds):
            if time.monotonic() > until:
                break
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            # Another one begins each time, so that none always runs on what the same other one left behind.
            steps = [_copy, _dump, _ours]
            for step in (*steps[number % 3 :], *steps[: number % 3]):
                step(made, found)
        size = made.size()
    shutil.rmtree(folder / "field")
    return _section(found, size)


def _copy(made: Database, found: dict[str, list[Measured]]) -> None:
    copy = made.folder / "copy"
    found[COPY].append(_shell(f"cp -r {made.data} {copy}", copy.parent))
    shutil.rmtree(copy)


def _dump(made: Database, found: dict[str, list[Measured]]) -> None:
    file, unpacked = made.folder / "dump.tar.zst", made.folder / "unpacked"
    tool = f"{made.binaries['pg_basebackup']} -D - -Ft -X none -c fast -d {shlex.quote(made.dsn)}"
    found[DUMP].append(_shell(f"{tool} | zstd -q -1 -T2 -f -o {file}", made.folder))
    found[UNPACK].append(_shell(f"mkdir {unpacked} && zstd -q -dc {file} | tar x -C {unpacked}", made.folder))
    shutil.rmtree(unpacked)
    file.unlink()


def _ours(made: Database, found: dict[str, list[Measured]]) -> None:
    restored = made.folder / "restored"
    for name, arguments in ((BACKUP, ["backup"]), (RESTORE, ["restore", str(restored)])):
        argv = [sys.executable, "-m", "benchmarks.ours", *arguments]
        found[name].append(measure(argv, made.environment, synced=made.folder))
    shutil.rmtree(restored)
    for backups in (made.folder / "repository" / "services" / SERVICE).glob("*/backups"):
        shutil.rmtree(backups)


def _shell(script: str, synced: Path) -> Measured:
    return measure(["bash", "-c", f"set -o pipefail; {script}"], synced=synced)


def _section(found: dict[str, list[Measured]], size: int) -> str:
    zstd = subprocess.run(["zstd", "--version"], capture_output=True, text=True, check=True).stdout.split("v")[-1]
    lines = [
        f"{format_bytes(size)} of poorly compressible rows, checksums on, zstd level 1 (zstd {zstd.split(',')[0]}),",
        f"repository in a folder on the same disk, warm cache, median of {len(found.get(COPY, []))} rounds.",
        "",
        "| | seconds | fastest to slowest | ratio | without starting Python | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for name in (COPY, DUMP, BACKUP, UNPACK, RESTORE):
        if not (runs := found.get(name)):
            lines.append(f"| {name} | not measured | | | | |")
            continue
        against = _AGAINST.get(name)
        ratio = f"{median(runs) / median(found[against]):.2f} of {against}" if against else "1"
        inner = [run.inner_seconds for run in runs if run.inner_seconds is not None]
        cells = [name, f"{median(runs):.1f}", spread(runs), ratio]
        cells += [f"{statistics.median(inner):.1f}" if inner else "", format_bytes(max(run.peak_bytes for run in runs))]
        # A pipe would end the cell.
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", _NOTE])
