"""WAL fetched ahead of its replay, so that PostgreSQL's `restore_command` is a rename.

A fetcher puts segments, in order, into `<target>/dr_restore/wal/`; the command that PostgreSQL runs, in the data
directory, waits for the one it wants and moves it. Three things are kept apart that a plain `cp` confuses: a segment
that does not exist (not on the list: the log ends here), one that is still to come (wait), and whatever else keeps it
away, such as a fetcher that failed or died (exit 255: PostgreSQL stops, rather than take a broken fetch for the end of
the log and open with data missing).

The segment is moved to where PostgreSQL looks when the archive has nothing, to pg_wal, and the command says that it has
nothing (exit 1). Of a file that it is given PostgreSQL brings every byte to disk before it replays it, which takes as
long as the replay; what the replay made of it is on disk before the server opens, and after a crash of the machine
before that the command refuses everything until the restore is resumed, which fetches again.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.target import PRIVATE
from dr_pipelines.engines.postgres.wal import HEADER_BYTES, FileKind, kind_of, read_header
from dr_pipelines.processes.identity import Identity
from dr_pipelines.processes.proc import boot_id, look_up
from dr_pipelines.repository.patience import patiently

__all__ = ["AHEAD", "Stage"]

AHEAD = 24
"""Segments fetched beyond what was taken: enough to keep the replay busy, and bounded disk."""

_NEXT = f"""#!/bin/sh
# restore_command of an unfinished restore: next %f. Exit 1: look into pg_wal. Unless it waits it starts only mv.
stage={PRIVATE}/wal
# Whatever else ends this must not look like the end of the log.
code=255
trap 'exit $code' EXIT
refuse() {{
  echo "dr_pipelines: $1" >&2
  exit
}}
answer() {{
  code=1
  exit
}}
# What was not on disk when the machine stopped may have its name and none of its content.
read -r begun < "$stage/boot" && read -r boot < /proc/sys/kernel/random/boot_id || exit
[ "$boot" = "$begun" ] || refuse "the machine was started again since; resume the restore"
known=
while :; do
  if [ -f "$stage/$1" ]; then
    # PostgreSQL must not archive again what came from the archive.
    printf '' > "pg_wal/archive_status/$1.done" && mv -- "$stage/$1" "pg_wal/$1" || exit
    printf '%s\n' "$1" > "$stage/wanted" || exit
    echo "dr_pipelines: fetched log file $1" >&2
    answer
  fi
  if [ -z "$known" ]; then
    grep -qxF -- "$1" "$stage/coming"
    case $? in
    0) known=1 ;;
    1) answer ;;
    *) exit ;;
    esac
    # Taken before.
    [ -f "pg_wal/$1" ] && answer
    printf '%s\n' "$1" > "$stage/wanted" || exit
  fi
  read -r pid start < "$stage/fetcher" || exit
  # The fetcher is the process of this id and start time; when it is gone, nothing more will come.
  line=
  {{ read -r line < "/proc/$pid/stat"; }} 2>/dev/null
  # shellcheck disable=SC2086
  set -- "$1" ${{line##*) }}
  if [ "${{21:-}}" != "$start" ] && ! [ -f "$stage/$1" ]; then
    refuse "the fetcher of WAL is gone; resume the restore"
  fi
  sleep 0.02
done
"""


class Stage:
    """The folder of fetched WAL of one restore."""

    def __init__(self, target: Path, log: Log, names: Sequence[str], identity: Identity | None, workers: int) -> None:
        self.folder = target / PRIVATE / "wal"
        self._target = target
        self._log, self._names, self._identity, self._workers = log, tuple(names), identity, workers
        self._index = {name: number for number, name in enumerate(self._names)}
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._stop = threading.Event()
        self._failure: BaseException | None = None

    @property
    def restore_command(self) -> str:
        """What PostgreSQL calls, in its data directory, for each file of the log; free of what the target is called."""
        return f"/bin/sh {PRIVATE}/wal/next %f"

    def open(self, *, keep_taken: bool = False) -> None:
        """Make the folder, the list of what will come, and the command.

        What an interrupted restore had fetched goes: after a crash of the machine it may not be what it was. With
        `keep_taken` what PostgreSQL has in pg_wal stays: a server that has recovered does not ask for it again.
        """
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for leftover in self.folder.iterdir():
            leftover.unlink()
        for name in () if keep_taken else self._names:
            (self._target / "pg_wal" / name).unlink(missing_ok=True)
        self._write("boot", f"{boot_id()}\n")
        self._write("coming", "".join(f"{name}\n" for name in self._names))
        self._write("next", _NEXT)
        here = look_up(os.getpid())
        assert here is not None
        self._write("fetcher", f"{here.pid} {here.start_ticks}\n")
        if self._identity is not None:
            os.chown(self.folder, self._identity.uid, self._identity.gid)

    @contextmanager
    def fetching(self) -> Iterator["Stage"]:
        """Fetch ahead in the background while the body runs; `check` raises what went wrong."""
        threads = [threading.Thread(target=self._run, name="wal-fetcher", daemon=True) for _ in range(self._workers)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def check(self) -> None:
        """Raise what made the fetching fail, if it did."""
        if self._failure is not None:
            raise self._failure

    def wanted(self) -> int:
        """The place in the list of the file that PostgreSQL asked for last; 0 before the first."""
        try:
            return self._index.get((self.folder / "wanted").read_text().strip(), 0)
        except FileNotFoundError:
            return 0

    def progress(self) -> tuple[int, int]:
        """Files of the log taken, and files there are."""
        return self.wanted(), len(self._names)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    wanted = self.wanted()
                    ahead = range(wanted, min(wanted + AHEAD, len(self._names)))
                    number = next((number for number in ahead if number not in self._begun), None)
                    if number is not None:
                        self._begun.add(number)
                if number is None:
                    self._stop.wait(0.02)
                else:
                    self._fetch(self._names[number])
        except BaseException as error:
            self._failure = error
            # Where the disk is full not even that can be said; `check` says it, and the server is ended.
            with suppress(OSError):
                self._write("fetcher", "0 failed\n")

    def _fetch(self, name: str) -> None:
        final = self.folder / name
        temporary = self.folder / f".{name}"

        def fetch() -> int:
            with temporary.open("wb") as file:
                return self._log.fetch_to(name, file.write)

        size = patiently(fetch)
        if kind_of(name) is FileKind.SEGMENT:
            with temporary.open("rb") as file:
                # PostgreSQL would take another segment of this name for the end of the log.
                read_header(file.read(HEADER_BYTES)).check(name, size)
        temporary.chmod(0o600)
        if self._identity is not None:
            os.chown(temporary, self._identity.uid, self._identity.gid)
        temporary.rename(final)

    def _write(self, name: str, text: str) -> None:
        temporary = self.folder / f".{name}.new"
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.rename(self.folder / name)
