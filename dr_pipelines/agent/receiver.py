"""pg_receivewal, kept running: it takes a server's log as that is written, through a replication slot.

It ends whenever the connection does, and is started again until it stands; so a server that is restarted, promoted or
out of reach for a while is followed without anybody's doing. What it has received it flushes at once and only then
acknowledges (`--synchronous`): a commit that waits for it is on its disk.
"""

import logging
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines.agent.journal import say
from dr_pipelines.engines.postgres.connection import for_a_tool
from dr_pipelines.errors import DrError
from dr_pipelines.processes import proc
from dr_pipelines.processes.identity import end_of
from dr_pipelines.processes.postgres import Binaries
from dr_pipelines.timing import wait_until

__all__ = ["Receiver", "Stream", "slot_of"]

_NOTE = ".receiver"
"""In the folder: which process writes there, as /proc/PID/stat showed it when it began."""
_NOTE_AND_BECOME = r"""read -r line < /proc/self/stat && printf '%s\n' "$line" > "$1" && shift && exec "$@" """
_LONGEST_PAUSE = 5.0
_STOP_PATIENCE = 10.0
_GONE = ("is not in this server's history", "has already been removed")
"""What the server says where it can never send what the files in the folder make pg_receivewal ask for."""
_LOST = "has been invalidated"
"""What it says of a slot whose log it has let go of (max_slot_wal_keep_size): such a slot is of no use."""
_LASTING = 2.0
"""Seconds from which on an attempt counts as one that had begun to receive."""


@dataclass(frozen=True)
class Stream:
    """How a service's log is streamed."""

    binaries: Callable[[int], Binaries]
    """PostgreSQL's tools for a server of that major version. Raises MissingSoftware."""
    slot: str
    chunk_every: float = 1.0
    """Seconds between two chunks of a segment that is not full."""


def slot_of(service: str) -> str:
    """The name of a service's replication slot, by which its receiver is known to the server too."""
    return f"dr_{service.lower().replace('-', '_')}"


class Receiver(threading.Thread):
    """Keeps pg_receivewal running into one folder, for one cluster, until it is stopped."""

    def __init__(self, dsn: str, stream: Stream, folder: Path, major: int) -> None:
        super().__init__(name="receiver", daemon=True)
        self._dsn, self._stream, self._folder = dsn, stream, folder
        self._major = major
        self._halt = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._mutex = threading.Lock()
        self.problem: str | None = None
        """Why nothing is received, for a person; None where something is, or the first attempt is under way."""
        self.cannot_go_on = False
        """The server will never send what comes next in this folder: what is there is all that can be had."""

    @property
    def at_rest(self) -> bool:
        """No process of ours writes into the folder now."""
        process = self._process
        return process is None or process.poll() is not None

    def stop(self) -> None:
        """End pg_receivewal; what it had received stays in the folder."""
        self._halt.set()
        with self._mutex:
            self._end()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        failures = 0
        _end_predecessor(self._folder)
        while not self._halt.is_set():
            began = self._stream_until_it_ends()
            failures = 0 if began else failures + 1
            pause = min(_LONGEST_PAUSE, 0.1 * 2**failures)
            self._halt.wait(pause * random.uniform(0.5, 1))

    def _stream_until_it_ends(self) -> bool:
        """Whether it had begun to receive. Notes why it ended."""
        try:
            tool = self._stream.binaries(self._major)["pg_receivewal"]
            common = [tool, f"--slot={self._stream.slot}", "--no-password"]
            with for_a_tool(self._dsn, self._stream.slot) as (conninfo, environment):
                common.append(f"--dbname={conninfo}")
                if self._carry_out([*common, "--create-slot", "--if-not-exists"], environment):
                    return False
                receive = ["--synchronous", "--no-loop", "--status-interval=1", f"--directory={self._folder}"]
                began_at = time.monotonic()
                if _LOST in self._carry_out([*common, *receive], environment, receives=True):
                    say("slot-lost", logging.WARNING, slot=self._stream.slot)
                    # Ours, and worth nothing. The next one begins where the server is; the hole shows in the log.
                    self._carry_out([*common, "--drop-slot"], environment)
                return time.monotonic() - began_at > _LASTING
        except (DrError, OSError) as error:
            self._note(str(error))
            return False

    def _carry_out(self, command: list[str], environment: dict[str, str], *, receives: bool = False) -> str:
        """Run it to its end; what it said where that was a bad one, else nothing."""
        with self._mutex:
            if self._halt.is_set():
                return "stopped"
            self._process = process = subprocess.Popen(
                ["/bin/sh", "-c", _NOTE_AND_BECOME, "sh", str(self._folder / _NOTE), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        if receives:
            say("receiving", slot=self._stream.slot, folder=self._folder)
        assert process.stderr is not None
        said = b""
        for line in process.stderr:
            said = (said + line)[-4000:]
        code = process.wait()
        process.stderr.close()
        if code == 0 and not receives:
            return ""
        words = said.decode(errors="replace") or f"pg_receivewal ended with {code}"
        self.cannot_go_on = any(reason in words for reason in _GONE)
        self._note(end_of(words, lines=2))
        return words

    def _note(self, problem: str) -> None:
        if not self._halt.is_set():
            self.problem = problem

    def streams(self) -> None:
        """The server has said that it sends: whatever kept it from that is over."""
        self.problem, self.cannot_go_on = None, False

    def _end(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_PATIENCE)
            return
        process.kill()
        process.wait()


def _end_predecessor(folder: Path) -> None:
    """End the receiver of an agent that was killed: it would hold the slot, and write into the same files."""
    try:
        process = proc.parse_stat((folder / _NOTE).read_text())
    except (FileNotFoundError, ValueError):
        return
    if proc.send_signal(process.pid, process.start_ticks, signal.SIGINT):
        if wait_until(lambda: not proc.is_alive(process.pid, process.start_ticks), timeout=_STOP_PATIENCE):
            return
        proc.send_signal(process.pid, process.start_ticks, signal.SIGKILL)
