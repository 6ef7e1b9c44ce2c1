"""What /proc says of processes, and ending a process with all that it started.

A process is named by its id and its start (clock ticks since boot): ids are used again, the pair is not.
"""

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.errors import ProcessError
from dr_pipelines.timing import wait_until

__all__ = [
    "Process",
    "all_processes",
    "boot_id",
    "family",
    "is_alive",
    "kill_family",
    "look_up",
    "parse_stat",
    "send_signal",
]

Key = tuple[int, int]
"""Process id and start ticks."""

_PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    """A process as /proc/PID/stat showed it at one moment."""

    pid: int
    name: str
    state: str
    parent: int
    session: int
    start_ticks: int

    @property
    def key(self) -> Key:
        return self.pid, self.start_ticks

    @property
    def dead(self) -> bool:
        """A zombie is dead: it holds no file, no port and no memory, only its parent's attention is missing."""
        return self.state in "ZXx"


def parse_stat(line: str) -> Process:
    """Read a line of /proc/PID/stat. Raises ValueError where it is not one."""
    # The name stands in parentheses and may itself hold spaces and parentheses.
    opening, closing = line.index("("), line.rindex(")")
    fields = line[closing + 1 :].split()
    if len(fields) < 20:
        raise ValueError(f"not a line of /proc/PID/stat: {line!r}")
    return Process(
        pid=int(line[:opening]),
        name=line[opening + 1 : closing],
        state=fields[0],
        parent=int(fields[1]),
        session=int(fields[3]),
        start_ticks=int(fields[19]),
    )


def look_up(pid: int) -> Process | None:
    """The process with this id, perhaps a zombie; None where there is none."""
    try:
        return parse_stat((_PROC / str(pid) / "stat").read_text(errors="replace"))
    except (FileNotFoundError, ProcessLookupError):
        return None


def all_processes() -> dict[int, Process]:
    """Every living process that can be seen, by its id."""
    found = (look_up(int(name)) for name in os.listdir(_PROC) if name.isdigit())
    return {process.pid: process for process in found if process and not process.dead}


def boot_id() -> str:
    """Another one after every start of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def is_alive(pid: int, start_ticks: int) -> bool:
    """Whether that very process still runs."""
    process = look_up(pid)
    return process is not None and process.start_ticks == start_ticks and not process.dead


def send_signal(pid: int, start_ticks: int, number: int) -> bool:
    """Send a signal to that very process; False where it is no more."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        # The handle keeps to one process; asked after it was opened, the start says whether it is the one meant.
        if not is_alive(pid, start_ticks):
            return False
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(handle)
    return True


def kill_family(
    pid: int,
    start_ticks: int,
    *,
    mark: str | None = None,
    data: Path | None = None,
    spare: Collection[Key] = (),
    timeout: float = 10,
) -> list[Process]:
    """SIGKILL that process and its `family`, and wait until they are gone.

    Returns whom it killed; raises ProcessError where one is not gone after `timeout` seconds.
    """
    found: dict[Key, Process] = {}
    deadline = time.monotonic() + timeout
    # Stopped first, killed then: nobody starts another process while we look for them.
    while fresh := [
        process for process in family(pid, start_ticks, mark=mark, data=data, spare=spare) if process.key not in found
    ]:
        if time.monotonic() > deadline:
            raise ProcessError(f"process {pid} goes on starting others after SIGSTOP")
        for process in fresh:
            found[process.key] = process
            send_signal(*process.key, signal.SIGSTOP)
        # A process within vfork() does not stop before its child has gone on: do not insist.
        wait_until(lambda: all(_is_stopped(process) for process in fresh), timeout=0.5, interval=0.002)
    owners = {process.pid: _user_of(process.pid) for process in found.values()}
    for key in found:
        send_signal(*key, signal.SIGKILL)
    if not wait_until(lambda: not any(is_alive(*key) for key in found), timeout=timeout, interval=0.005):
        left = ", ".join(f"{process.name} ({process.pid})" for process in found.values() if is_alive(*process.key))
        raise ProcessError(f"still there {timeout:g} s after SIGKILL: {left}")
    _remove_shared_memory(owners)
    return list(found.values())


def family(
    pid: int,
    start_ticks: int,
    *,
    mark: str | None = None,
    data: Path | None = None,
    spare: Collection[Key] = (),
) -> Iterator[Process]:
    """That process, its session, and all their descendants, as far as they live.

    With a `mark` ("NAME=value") also whoever was started with it in the environment, which finds descendants of a
    process that is dead already; with `data`, the data folder of a PostgreSQL server, also that server's processes,
    which have left its session and written over their environment. Processes in `spare` and what they started are left
    alone.
    """
    table = all_processes()
    root = table.get(pid)
    if root is not None and root.start_ticks != start_ticks:
        root = None
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    queue = [root] if root else []
    if root:
        queue += [process for process in table.values() if process.session == root.pid]
    if mark:
        queue += [process for process in table.values() if _has_mark(process.pid, mark)]
    if data:
        queue += _backends(pid, start_ticks, data, table)
    seen: set[int] = {os.getpid()}
    while queue:
        process = queue.pop()
        if process.pid in seen or process.key in spare:
            continue
        seen.add(process.pid)
        yield process
        queue += children.get(process.pid, ())


def _has_mark(pid: int, mark: str) -> bool:
    try:
        return mark.encode() in (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # somebody else's process, or gone
        return False


def _backends(pid: int, start_ticks: int, data: Path, table: Mapping[int, Process]) -> list[Process]:
    """The processes of the PostgreSQL server whose postmaster is, or was, that process: they work in its data folder.

    None where another server was started in the folder since: postmaster.pid names the last one, and PostgreSQL starts
    none there before the processes of the one before are gone.
    """
    try:
        named = (data / "postmaster.pid").read_text().split("\n", 1)[0].strip()
    except OSError:
        return []
    if named != str(pid) or (pid in table and table[pid].start_ticks != start_ticks):
        return []
    return [
        process
        for process in table.values()
        if process.name == "postgres" and process.start_ticks >= start_ticks and _works_in(process.pid, data)
    ]


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(os.readlink(_PROC / str(pid) / "cwd")) == folder
    except OSError:  # somebody else's process, or gone
        return False


def _is_stopped(process: Process) -> bool:
    now = look_up(process.pid)
    return now is None or now.start_ticks != process.start_ticks or now.state in "TtZXx"


def _user_of(pid: int) -> int | None:
    with suppress(FileNotFoundError):
        return (_PROC / str(pid)).stat().st_uid
    return None


def _remove_shared_memory(owners: dict[int, int | None]) -> None:
    """Remove the System V segments that the killed (process id → user id) made and nobody is attached to.

    Every PostgreSQL server makes a small one and, when killed, leaves it for the next server in the same data folder;
    where that folder is thrown away it would stay until the machine's few thousand are used up.
    """
    try:
        header, *rows = (_PROC / "sysvipc/shm").read_text().splitlines()
    except OSError:  # a kernel without System V shared memory
        return
    columns = header.split()
    for segment in (dict(zip(columns, row.split(), strict=False)) for row in rows):
        user = owners.get(int(segment["cpid"]))
        if user is not None and int(segment["cuid"]) == user and segment["nattch"] == "0":
            ctypes.CDLL(None).shmctl(int(segment["shmid"]), 0, None)  # IPC_RMID
