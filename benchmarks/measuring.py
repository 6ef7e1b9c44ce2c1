"""One run of one contender: how long it takes until its work is on disk, and how much memory all its processes have."""

import os
import shlex
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.errors import ProcessError
from dr_pipelines.processes.identity import Identity, credentials, end_of
from dr_pipelines.timing import Stopwatch, SystemClock

__all__ = ["Measured", "cool", "empty", "measure", "median", "spread", "verdict", "warm"]

_ROOT = Path(__file__).parents[1]
_EVERY = 0.02
"""Seconds between two looks at the processes' memory: what one takes in its very last moments may be missed."""


@dataclass(frozen=True)
class Measured:
    """One run of one contender. `seconds` is what it took from outside, with what was left to bring to disk."""

    seconds: float
    inner_seconds: float | None
    """What our function itself took, without starting Python and importing; None for the peers."""
    peak_bytes: int
    """The most that the peaks of its processes at one time add up to; pages that they share count several times."""
    cpu_seconds: float
    """What its processes computed, in the kernel too; not what server and kernel threads did for them."""


def measure(
    argv: Sequence[str],
    environment: dict[str, str] | None = None,
    *,
    identity: Identity | None = None,
    synced: Path | None = None,
) -> Measured:
    """Run a command to its end, then `sync` the file system of `synced`. Raises ProcessError where it fails."""
    watch = Stopwatch(SystemClock())
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=complaints, env=environment, cwd=_ROOT, **credentials(identity)
        )
        assert process.stdout is not None
        with process.stdout, _Memory(process.pid) as memory:
            output = process.stdout.read().decode()
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            complaints.seek(0)
            said = end_of(output + complaints.read().decode(errors="replace"))
            raise ProcessError(f"{shlex.join(argv)} ended with {process.returncode}: {said}")
    if synced is not None:
        subprocess.run(["sync", "-f", str(synced)], check=True)
    seconds = watch.elapsed().total_seconds()
    inner = [float(line.split()[1]) for line in output.splitlines() if line.startswith("seconds ")]
    return Measured(seconds, inner[0] if inner else None, memory.peak, usage.ru_utime + usage.ru_stime)


class _Memory:
    """The peak memory of a process and of all that it starts, while the block runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.peak = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.peak = max(self.peak, self._peaks(self._pid))
            self._over.wait(_EVERY)

    def _peaks(self, pid: int) -> int:
        """The peaks so far of a process and of its descendants that live, added up."""
        try:
            with open(f"/proc/{pid}/status", "rb") as file:
                own = next((int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM:")), 0)
            children: set[bytes] = set()
            for task in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                    children.update(file.read().split())
        except (FileNotFoundError, ProcessLookupError):
            return 0
        return own + sum(self._peaks(int(child)) for child in children)


def warm(place: Path) -> None:
    """Bring everything below the folder into the page cache."""
    buffer = memoryview(bytearray(1 << 20))
    for path in _files(place):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def cool(place: Path) -> None:
    """Take everything below the folder out of the page cache, which must be on disk."""
    for path in _files(place):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def empty(place: Path) -> None:
    """Take the content of every file below the folder away."""
    for path in _files(place):
        os.truncate(path, 0)


def _files(place: Path) -> Iterable[Path]:
    return (path for path in place.rglob("*") if path.is_file())


def median(runs: Sequence[Measured]) -> float:
    """The median of their seconds."""
    return statistics.median(run.seconds for run in runs)


def spread(runs: Sequence[Measured]) -> str:
    """Their fastest and their slowest, for a table."""
    seconds = [run.seconds for run in runs]
    return f"{min(seconds):.1f} to {max(seconds):.1f}"


def verdict(value: float, limit: float) -> str:
    """PASS or FAIL, for a table, beside what the limit is."""
    return f"{'PASS' if value <= limit else 'FAIL'} (at most {limit:g})"
