"""What is measured: our backup and restore, and the commands that a team would use instead.

Each contender is a process of its own, so that its peak memory can be read when it ends, and each ends with its data on
disk: a `sync` is counted for those that do not bring it there themselves.
"""

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.errors import ProcessError
from dr_pipelines.timing import Stopwatch, SystemClock

__all__ = ["Measured", "Ours", "Peers"]


@dataclass(frozen=True)
class Measured:
    """One run of one contender. `seconds` is what it took from outside; `peak_bytes` of its largest process."""

    seconds: float
    inner_seconds: float | None
    """What our function itself took, without starting Python and importing; None for the peers."""
    peak_bytes: int


def measure(argv: list[str], environment: dict[str, str] | None = None) -> Measured:
    """Run a command to its end. Raises ProcessError where it fails."""
    watch = Stopwatch(SystemClock())
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment, cwd=Path(__file__).parents[1])
    assert process.stdout is not None
    output = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = watch.elapsed().total_seconds()
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    if process.returncode != 0:
        raise ProcessError(f"{shlex.join(argv)} ended with {process.returncode}")
    inner = [float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds ")]
    return Measured(seconds, inner[0] if inner else None, usage.ru_maxrss * 1024)


@dataclass(frozen=True)
class Ours:
    """This project's functions, each in a fresh Python as a run or a command starts one."""

    environment: dict[str, str]

    def backup(self) -> Measured:
        """A full backup into the repository, with the wait for its log."""
        return measure([sys.executable, "-m", "benchmarks.ours", "backup"], self.environment)

    def restore(self, target: Path) -> Measured:
        """The newest backup's files into a new target, checked part by part; without pg_verifybackup and WAL."""
        return measure([sys.executable, "-m", "benchmarks.ours", "restore", str(target)], self.environment)


@dataclass(frozen=True)
class Peers:
    """The commands of the field."""

    tools: Path
    """Folder of PostgreSQL's binaries."""
    dsn: str

    def copy(self, data: Path, target: Path) -> Measured:
        """`cp -r` of the data directory and `sync`: what the disk can do."""
        return _shell(
            f"cp -r {shlex.quote(str(data))} {shlex.quote(str(target))} && sync -f {shlex.quote(str(target))}"
        )

    def base_backup(self, file: Path) -> Measured:
        """`pg_basebackup` as tar through `zstd -1 -T2` into a file, and `sync`."""
        tool = shlex.quote(str(self.tools / "pg_basebackup"))
        dump = f"{tool} -D - -Ft -X none -c fast -d {shlex.quote(self.dsn)}"
        return _shell(f"{dump} | zstd -q -1 -T2 -f -o {shlex.quote(str(file))} && sync -f {shlex.quote(str(file))}")

    def unpack(self, file: Path, target: Path) -> Measured:
        """`zstd -d` into `tar x`, and `sync`."""
        place = shlex.quote(str(target))
        return _shell(f"mkdir {place} && zstd -q -dc {shlex.quote(str(file))} | tar x -C {place} && sync -f {place}")


def _shell(script: str) -> Measured:
    return measure(["bash", "-c", f"set -o pipefail; {script}"])
