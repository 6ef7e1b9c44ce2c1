"""Processes that outlive the process that started them, and are always found again.

A lease is two files in the state folder: leases/<id>.json says what was to be started, for whom and until when, and is
written first; leases/<id>.process says which process it became, and is written by that process itself before it turns
into the program. So a program never runs without its lease, whoever is killed at whatever moment. While it is being
ended the first file is called <id>.ending: nobody can renew it any more, and the next `reap` finishes what was begun.
"""

import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, ValidationError

from dr_pipelines.errors import MissingSoftware, ProcessError, UsageError
from dr_pipelines.processes import proc
from dr_pipelines.processes.identity import Identity, credentials, end_of, environment, open_folder
from dr_pipelines.processes.locks import file_lock
from dr_pipelines.timing import Clock, SystemClock, wait_until

__all__ = ["FOLDER_MARK", "Lease", "Leases", "never"]

FOLDER_MARK = ".dr_pipelines-scratch"
"""The file that says that a folder is scratch and goes with its lease."""

_COMING = 3.0
"""Seconds in which a process that was begun notes itself; it takes milliseconds."""

_log = logging.getLogger(__name__)

# The shell notes who it is where its output goes, and only then becomes the program, the process staying the same.
_NOTE_AND_BECOME = r"""read -r line < /proc/self/stat && printf '%s\n' "$line" && exec "$@" >&2"""


class Lease(BaseModel):
    """One leased process, as it was when it was read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    lease_version: Literal[1] = 1
    id: str
    kind: str
    """What it is: "postgres", "agent", "writer", "s3"."""
    owner: str
    """For whom it runs: an execution's id, or "lab"."""
    pid: int = 0
    """0 where nothing has been started yet."""
    start_ticks: int = 0
    boot_id: str
    argv: tuple[str, ...]
    holder_pid: int
    holder_start_ticks: int
    expires_at: datetime
    folders: tuple[Path, ...] = ()
    data: Path | None = None
    """The data folder of a PostgreSQL server, whose processes are found by it where the postmaster alone is dead."""
    stop_signal: int = int(signal.SIGTERM)
    state_dir: Path

    @property
    def mark(self) -> str:
        """What stands in the environment of the process and of what it starts."""
        return f"DR_LEASE={self.id}"


def never(lease: Lease) -> bool:  # noqa: ARG001
    """A dead holder alone ends no lease."""
    return False


class Leases:
    """The leases of one state folder; any number of processes and threads may use them at the same time.

    The clock decides what has expired; waiting for processes takes real time.
    """

    def __init__(self, state_dir: Path, clock: Clock | None = None) -> None:
        self._state_dir = open_folder(state_dir).resolve()
        self._folder = open_folder(self._state_dir / "leases")
        self._clock = clock or SystemClock()

    @property
    def state_dir(self) -> Path:
        """The state folder, its real path."""
        return self._state_dir

    def start(
        self,
        argv: Sequence[str],
        *,
        kind: str,
        owner: str,
        identity: Identity | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        log: Path,
        ttl: timedelta,
        folders: Sequence[Path] = (),
        data: Path | None = None,
        stop_signal: int = signal.SIGTERM,
        wait_for: Callable[[], object] | None = None,
        timeout: float = 30,
    ) -> Lease:
        """Start a process in a session of its own, without input, its output appended to `log`.

        It runs until it ends by itself, is ended, or its lease expires `ttl` from now without having been renewed.
        `folders` (existing, below the state folder, no data folder itself) are scratch: they are marked, and removed
        when the lease is reaped or its owner ended. `data` is the data folder where it is a PostgreSQL server. With
        `wait_for`, returns as soon as that is true; raises ProcessError with the end of the log where the process ends
        before or `timeout` seconds have passed.
        """
        program = shutil.which(argv[0])
        if program is None:
            raise MissingSoftware(f"{argv[0]} is not there", hint="`dr doctor` says what to install")
        # A log's end that is not this process's own would mislead.
        log_start = log.stat().st_size if log.exists() else 0
        lease = self._note_wish(
            kind, owner, (program, *argv[1:]), ttl=ttl, folders=folders, data=data, stop_signal=stop_signal
        )
        try:
            lease = self._spawn(lease, identity=identity, env=env, cwd=cwd, log=log)
            if wait_for:
                in_time = wait_until(lambda: not self.alive(lease) or wait_for(), timeout=timeout)
                if not in_time or not self.alive(lease):
                    what = "ended while it started" if in_time else f"was not ready {timeout:g} s after its start"
                    raise ProcessError(f"{kind} {what}: {end_of(log, start=log_start)}")
        except BaseException:
            self.kill(lease)
            raise
        return lease

    def all(self, *, ending: bool = False) -> list[Lease]:
        """Every lease, whether its process lives or not; where `ending`, also those that are being ended now."""
        return self._read("*.json") + (self._read("*.ending") if ending else [])

    def of(self, owner: str, kind: str | None = None) -> list[Lease]:
        """The owner's leases, of one kind or of all, whether their processes live or not."""
        return [lease for lease in self.all() if lease.owner == owner and kind in (None, lease.kind)]

    def alive(self, lease: Lease) -> bool:
        """Whether that very process still runs; a zombie does not."""
        if lease.boot_id != proc.boot_id():
            return False
        current = lease if lease.pid else self._with_process(lease)
        return current.pid != 0 and proc.is_alive(current.pid, current.start_ticks)

    def renew(self, owner: str, ttl: timedelta) -> None:
        """Let the owner's leases expire `ttl` from now."""
        with self._locked():
            for lease in self.of(owner):
                self._write(lease.model_copy(update={"expires_at": self._clock.wall() + ttl}))

    @contextmanager
    def keep_renewed(self, owner: str, ttl: timedelta) -> Iterator[None]:
        """Renew the owner's leases, those to come too, until the block is left."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(ttl.total_seconds() / 3):
                try:
                    self.renew(owner, ttl)
                except OSError as error:  # a full disk, say: the next try comes before the leases expire
                    _log.warning("the leases of %s could not be renewed: %s", owner, error)

        self.renew(owner, ttl)
        thread = threading.Thread(target=go_on, name=f"leases of {owner}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def kill(self, lease: Lease) -> None:
        """SIGKILL the process, its session and all their descendants at once; returns when all are gone.

        Processes that have a lease of their own are left alone. The lease's folders stay until its owner is ended or
        it is reaped.
        """
        self._kill(lease)
        if not lease.folders:
            with self._locked():
                self._forget(lease)

    def end(self, lease: Lease, timeout: float = 30, *, number: int | None = None) -> None:
        """Ask the process to end (by `number`, else its own stop signal); kill what is left after `timeout` seconds."""
        lease = self._with_process(lease)
        self._ask(lease, number)
        self._await(lease, timeout)
        self.kill(lease)

    def end_owner(self, owner: str, timeout: float = 10) -> None:
        """End all the owner's processes, remove their folders, forget their leases."""
        with self._locked():
            condemned = [self._condemn(lease) for lease in self.of(owner)]
        self._finish(condemned, timeout)

    def release(self, lease: Lease) -> None:
        """Let go of a process: it is nobody's and runs until it is ended; its folders are scratch no more."""
        with self._locked():
            kept = [place for other in self.all() if other.id != lease.id for place in other.folders]
            for folder in lease.folders:
                if folder not in kept:
                    (folder / FOLDER_MARK).unlink(missing_ok=True)
            self._forget(lease)

    def reap(self, *, dead_holders: Callable[[Lease], bool] = never, timeout: float = 10) -> list[Lease]:
        """End what has expired, or whose holder is dead and `dead_holders` says so, and remove their folders.

        Also finishes what was interrupted, and forgets processes that have ended by themselves, have left nobody behind
        and have no folders. Returns the leases it ended.
        """
        self._await_starts(lambda lease: self._is_orphan(lease) and dead_holders(lease))
        with self._locked():
            for lease in self.all():
                if lease.expires_at <= self._clock.wall() or (
                    self._is_orphan(lease) and self._is_settled(lease) and dead_holders(lease)
                ):
                    self._condemn(lease)
                elif lease.pid and not lease.folders and not self._lives_on(lease):
                    self._forget(lease)
            condemned = self._read("*.ending")
            for draft in self._folder.glob(".*.draft"):
                draft.unlink(missing_ok=True)
        self._finish(condemned, timeout)
        return condemned

    def _is_orphan(self, lease: Lease) -> bool:
        return lease.boot_id != proc.boot_id() or not proc.is_alive(lease.holder_pid, lease.holder_start_ticks)

    def _is_settled(self, lease: Lease) -> bool:
        """Whether it has its process, or will have none: one that was just being started may still come."""
        try:
            age = time.time() - self._path(lease).stat().st_mtime
        except FileNotFoundError:
            return True
        return bool(lease.pid) or age > _COMING

    def _await_starts(self, concerned: Callable[[Lease], bool]) -> None:
        """A holder killed in the middle of a start leaves a process that comes within moments, or never."""
        wait_until(
            lambda: all(self._is_settled(lease) for lease in self.all() if concerned(lease)),
            timeout=_COMING + 1,
            interval=0.02,
        )

    # --- the files

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with file_lock(self._folder / ".lock"):
            yield

    def _path(self, lease: Lease) -> Path:
        return self._folder / f"{lease.id}.json"

    def _note(self, lease: Lease) -> Path:
        return self._folder / f"{lease.id}.process"

    def _note_wish(
        self,
        kind: str,
        owner: str,
        argv: tuple[str, ...],
        *,
        ttl: timedelta,
        folders: Sequence[Path],
        data: Path | None,
        stop_signal: int,
    ) -> Lease:
        holder = proc.look_up(os.getpid())
        assert holder is not None
        lease = Lease(
            id=uuid4().hex,
            kind=kind,
            owner=owner,
            boot_id=proc.boot_id(),
            argv=argv,
            holder_pid=holder.pid,
            holder_start_ticks=holder.start_ticks,
            expires_at=self._clock.wall() + ttl,
            folders=tuple(self._checked(folder) for folder in folders),
            data=data.resolve() if data is not None else None,
            stop_signal=int(stop_signal),
            state_dir=self._state_dir,
        )
        with self._locked():
            for folder in lease.folders:
                (folder / FOLDER_MARK).write_text(f"{lease.id}\n")
            self._write(lease)
        return lease

    def _write(self, lease: Lease) -> None:
        fields = lease.model_dump_json(exclude={"pid", "start_ticks"}, indent=2)
        draft = self._folder / f".{lease.id}.draft"
        with open(draft, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(fields + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path(lease))

    def _read(self, pattern: str) -> list[Lease]:
        found = []
        for path in sorted(self._folder.glob(pattern)):
            try:
                lease = Lease.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                continue
            except ValidationError as error:
                _log.warning("%s is no lease that this version can read: %s", path, error.errors()[0]["msg"])
                continue
            # A copied state folder speaks of processes that are another's.
            if lease.state_dir == self._state_dir and lease.id == path.stem:
                found.append(self._with_process(lease))
        return found

    def _with_process(self, lease: Lease) -> Lease:
        """The lease with the process that it became, where one has noted itself."""
        try:
            line = self._note(lease).read_text(errors="replace")
        except FileNotFoundError:
            return lease
        if not line.endswith("\n"):
            return lease
        process = proc.parse_stat(line)
        return lease.model_copy(update={"pid": process.pid, "start_ticks": process.start_ticks})

    def _condemn(self, lease: Lease) -> Lease:
        with suppress(FileNotFoundError):
            self._path(lease).rename(self._folder / f"{lease.id}.ending")
        return lease

    def _forget(self, lease: Lease) -> None:
        """Called with the lock, so that nobody who renews at the same time writes it again."""
        for path in (self._note(lease), self._path(lease), self._folder / f"{lease.id}.ending"):
            path.unlink(missing_ok=True)

    # --- the processes

    def _spawn(
        self, lease: Lease, *, identity: Identity | None, env: Mapping[str, str] | None, cwd: Path | None, log: Path
    ) -> Lease:
        name, value = lease.mark.split("=")
        with self._note(lease).open("xb") as note, log.open("ab") as output:
            child = subprocess.Popen(
                ["/bin/sh", "-c", _NOTE_AND_BECOME, "sh", *lease.argv],
                stdin=subprocess.DEVNULL,
                stdout=note,
                stderr=output,
                cwd=cwd or "/",
                env=environment(identity, env) | {name: value},
                start_new_session=True,
                **credentials(identity),
            )
        # Waited for from the first moment on, so that it is no zombie for as long as we live.
        threading.Thread(target=child.wait, name=f"wait for {lease.kind} {child.pid}", daemon=True).start()
        wait_until(lambda: self._with_process(lease).pid or child.returncode is not None, timeout=10, interval=0.002)
        started = self._with_process(lease)
        if not started.pid:
            raise ProcessError(f"{lease.kind} could not be started: {end_of(log)}")
        return started

    def _ask(self, lease: Lease, number: int | None = None) -> None:
        if lease.boot_id == proc.boot_id() and lease.pid:
            proc.send_signal(lease.pid, lease.start_ticks, number or lease.stop_signal)

    def _await(self, lease: Lease, timeout: float) -> None:
        wait_until(lambda: not self.alive(lease), timeout=timeout, interval=0.02)

    def _kill(self, lease: Lease) -> None:
        if lease.boot_id != proc.boot_id():
            return
        lease = self._with_process(lease)
        spare = self._others(lease)
        proc.kill_family(lease.pid, lease.start_ticks, mark=lease.mark, data=lease.data, spare=spare)

    def _lives_on(self, lease: Lease) -> bool:
        """Whether the process or anything that it has started and left behind still runs."""
        if lease.boot_id != proc.boot_id():
            return False
        spare = self._others(lease)
        return any(proc.family(lease.pid, lease.start_ticks, mark=lease.mark, data=lease.data, spare=spare))

    def _others(self, lease: Lease) -> set[proc.Key]:
        return {(other.pid, other.start_ticks) for other in self.all() if other.id != lease.id}

    def _finish(self, condemned: Sequence[Lease], timeout: float) -> None:
        for lease in condemned:
            self._ask(lease)
        deadline = time.monotonic() + timeout
        for lease in condemned:
            self._await(lease, deadline - time.monotonic())
            self._kill(lease)
        for lease in condemned:
            for folder in lease.folders:
                self._remove(folder, lease)
            with self._locked():
                self._forget(lease)

    # --- the folders

    def _checked(self, folder: Path) -> Path:
        place = folder.resolve()
        if not place.is_dir() or self._state_dir not in place.parents or place == self._folder:
            raise UsageError(f"{folder} is no folder below {self._state_dir}: it cannot go with a lease")
        if (place / "PG_VERSION").exists():
            raise UsageError(f"{folder} is a data folder: name the folder above it, since a mark is put there")
        return place

    def _remove(self, folder: Path, lease: Lease) -> None:
        """Remove a folder of ours that no other lease names; half-removed ones too."""
        doomed = folder.parent / f".removed-{folder.name}-{lease.id}"
        with self._locked():
            others = [place for other in self.all() if other.id != lease.id for place in other.folders]
            shared = any(place == folder or place in folder.parents or folder in place.parents for place in others)
            ours = not folder.is_symlink() and folder.resolve() == folder and self._state_dir in folder.parents
            if ours and not shared and (folder / FOLDER_MARK).is_file():
                folder.rename(doomed)
        while doomed.exists():
            # Two may be at it at the same time.
            with suppress(FileNotFoundError):
                shutil.rmtree(doomed)
