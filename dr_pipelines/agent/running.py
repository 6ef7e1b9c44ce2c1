"""The agent's loop: take from the spool, store, remove, and say how far the repository reaches.

Where the log is streamed, the spool is also where the receiver writes, and what is not full yet is stored too. A file
leaves the spool only after the repository has confirmed that it holds it, and storing the same file again changes
nothing; so the agent may be killed at any moment and goes on where it was.
"""

import logging
import random
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dr_pipelines import __version__
from dr_pipelines.agent.cluster import Cluster
from dr_pipelines.agent.journal import say
from dr_pipelines.agent.receiver import Stream
from dr_pipelines.agent.sampler import Sampler
from dr_pipelines.agent.spool import Spool, Waiting
from dr_pipelines.agent.streaming import Streaming
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import LogMode, Position, ServerState
from dr_pipelines.engines.postgres.wal import HEADER_BYTES, FileKind, kind_of, read_header
from dr_pipelines.errors import ConfigurationError, ObjectConflict, ObjectCorrupt, RepositoryError
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import Clock, Stopwatch

__all__ = ["AgentOptions", "run_agent"]

_LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach a repository that does not answer."""
_CROWD = 0.5
"""Seconds between two heartbeats while many files are shipped one after another."""
_REFUSED_FOR = 30.0
"""Seconds until a file that was refused is tried again, unless it changes before."""
_LAST_WORDS = 10.0
"""Seconds that shipping may go on after the agent was told to stop."""
_FIRST_ANSWER = 3.0
"""Seconds in which the server may say who it is, before the segments' headers are asked."""

_CONFIRM = 5.0
"""Seconds after which the repository is looked at again before anything is stored in it."""

_LARGEST = 1 << 30


@dataclass(frozen=True)
class AgentOptions:
    """What one agent works on."""

    service: str
    spool: Path
    store: Store
    """The service's place in the repository."""
    dsn: str | None = None
    """How the server is asked for its position; None: it is not, and no recovery point is known."""
    poll: float = 0.2
    """Seconds between two looks into the spool."""
    sample_every: float = 1.0
    heartbeat: float = 5.0
    level: int = 1
    """How hard zstd tries, 1 to 19."""
    stream: Stream | None = None
    """How the log is taken from the server; None: it comes into the spool by archive_command."""
    confirm: Callable[[], None] = lambda: None
    """Raises RepositoryError where the repository is not there any more: a bucket may have been emptied, say."""

    def __post_init__(self) -> None:
        if self.stream is not None and self.dsn is None:
            raise ConfigurationError(
                f"the log of {self.service} cannot be streamed: nobody said how its server is reached",
                hint="DR_DSN__<SERVICE>; or let archive_command hand the log over",
            )


def run_agent(options: AgentOptions, *, clock: Clock, stop: threading.Event) -> None:
    """Work until `stop` is set, then ship what is there and return.

    Nothing that happens to the server, the repository or a file ends it. Raises Locked where another agent works on
    this spool, and ConfigurationError where the spool or the connection string cannot be used at all.
    """
    slot = options.stream.slot if options.stream else None
    sampler = (
        Sampler(options.dsn, clock=clock, stop=stop, every=options.sample_every, slot=slot) if options.dsn else None
    )
    spool = Spool(options.spool)
    with spool.hold():
        say("started", service=options.service, spool=options.spool, repository=options.store.url)
        if sampler:
            sampler.start()
        agent = _Agent(options, spool, sampler, clock, stop)
        try:
            while not stop.is_set():
                agent.turn()
                stop.wait(options.poll)
        finally:
            agent.stop_receiving()
        agent.last_turn()
        say("stopped", service=options.service)


@dataclass(frozen=True, slots=True)
class _Refused:
    file: Waiting
    until: float


class _Agent:
    def __init__(
        self, options: AgentOptions, spool: Spool, sampler: Sampler | None, clock: Clock, stop: threading.Event
    ) -> None:
        self._options, self._spool, self._sampler, self._clock, self._stop = options, spool, sampler, clock, stop
        self._began_at = clock.monotonic()
        self._cluster: Cluster | None = None
        self._streaming = Streaming(options.stream, options.dsn or "", clock) if options.stream else None
        self._waiting: tuple[Waiting, ...] = ()
        self._problems: dict[str, str] = {}
        self._refused: dict[str, _Refused] = {}
        self._unremovable: dict[str, Waiting] = {}
        self._failures, self._retry_at = 0, float("-inf")
        self._told_at, self._untold = float("-inf"), False
        self._asked_at = float("-inf")
        self._give_up_at: float | None = None
        self._has_switched = False
        self._confirmed_at = float("-inf")

    def turn(self) -> None:
        """One look at everything."""
        self._look_into_spool()
        if self._clock.monotonic() < self._retry_at:
            return
        try:
            self._confirm()
            self._find_cluster()
            self._ship_all()
            self._ship_unfinished()
            if self._cluster is not None:
                self._cluster.refresh_where_due()
                self._note("log", self._cluster.problem)
            self._tell(at_least_every=0 if self._untold else self._options.heartbeat)
        except RepositoryError as error:
            self._failures += 1
            self._confirmed_at = float("-inf")
            pause = min(_LONGEST_PAUSE, 0.2 * 2**self._failures) * random.uniform(0.5, 1)
            self._retry_at = self._clock.monotonic() + pause
            self._note("repository", str(error))
        else:
            self._failures = 0
            self._note("repository", None)

    def _confirm(self) -> None:
        """What is put into a place that is no repository is as good as thrown away: it is better kept in the spool."""
        if self._clock.monotonic() - self._confirmed_at >= _CONFIRM:
            self._options.confirm()
            self._confirmed_at = self._clock.monotonic()

    def last_turn(self) -> None:
        """Ship what is there and say where we are, whatever pause is under way."""
        self._retry_at, self._untold = float("-inf"), True
        self.turn()

    def stop_receiving(self) -> None:
        """Nothing more comes; what came is for the last turn."""
        if self._streaming is not None:
            self._streaming.end()

    def _look_into_spool(self) -> None:
        try:
            self._waiting, strangers = self._spool.scan()
        except OSError as error:
            self._note("spool", f"the spool {self._spool.folder} cannot be read: {error.strerror}")
            return
        self._note("spool", None)
        names = ", ".join(strangers[:3])
        self._note("strangers", f"not of PostgreSQL's log, and left in the spool: {names}" if strangers else None)
        there = {file.name for file in self._waiting}
        for name in self._refused.keys() - there:
            del self._refused[name]
            self._note(name, None)
            if self._cluster is not None:
                self._cluster.gone(name)
        for name in self._unremovable.keys() - there:
            del self._unremovable[name]
            self._note(name, None)

    def _find_cluster(self) -> None:
        """Which cluster this is: the server's word where it gives one, else the segments', else the repository's."""
        self._listen()
        if self._cluster is not None or not self._may_ask_others():
            return
        for file in self._waiting:
            if kind_of(file.name) is FileKind.SEGMENT and self._open_by_header(file.folder / file.name):
                return
        if self._streaming is not None and any(map(self._open_by_header, self._spool.received().values())):
            return
        if self._clock.monotonic() - self._asked_at >= self._options.heartbeat:
            self._asked_at = self._clock.monotonic()
            self._open_only_one()

    def _listen(self) -> None:
        """Take what the server has said since."""
        if self._sampler is None:
            return
        for answer in self._sampler.drain():
            if self._cluster is None or self._cluster.system_identifier != answer.system_identifier:
                self._open_cluster(answer.system_identifier, answer.segment_size)
            if self._cluster is None:
                continue
            self._cluster.add(answer.sample)
            if self._streaming is not None:
                self._streaming.follow(answer)
        self._note("server", self._sampler.problem)

    def _may_ask_others(self) -> bool:
        if self._sampler is None or self._sampler.problem:
            return True
        return self._stop.is_set() or self._clock.monotonic() - self._began_at > _FIRST_ANSWER

    def _open_by_header(self, path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                header = read_header(file.read(HEADER_BYTES))
        except (ObjectCorrupt, OSError):
            return False
        self._open_cluster(header.system_identifier, header.segment_size)
        return True

    def _open_only_one(self) -> None:
        """Go on with the cluster whose log an earlier agent stored, where there is only one."""
        known = [name[:-1] for name in self._options.store.names("") if re.fullmatch(r"\d+/", name)]
        if len(known) != 1:
            return
        position = Log(self._options.store.child(known[0])).read_position()
        if position is not None and position.segment_size is not None:
            self._open_cluster(known[0], position.segment_size)

    def _open_cluster(self, system_identifier: str, segment_size: int) -> None:
        mode = LogMode.STREAM if self._streaming is not None else LogMode.ARCHIVE
        cluster = Cluster(self._options.store, system_identifier, segment_size, self._clock, mode=mode)
        if self._streaming is not None:
            try:
                folder = self._spool.open_receiving(system_identifier)
            except OSError as error:
                self._note("folder", f"nothing can be received into {self._spool.folder}: {error.strerror}")
                return
            self._note("folder", None)
            self._streaming.open(cluster, folder, self._options.level)
        self._cluster = cluster
        self._refused.clear()
        self._untold = True
        say("cluster", system_identifier=system_identifier, stored_end=cluster.stored_end)

    def _ship_unfinished(self) -> None:
        """Where the log is streamed: what has come of the segments that are not full."""
        if self._streaming is None or self._cluster is None:
            return
        try:
            # A new timeline's history has just been stored: it leads on only with what is on that timeline.
            shipped = self._streaming.ship(at_once=self._stop.is_set() or self._has_switched)
        except (ObjectConflict, ObjectCorrupt, OSError) as error:
            self._note("unfinished", f"a segment that is not full stays where it was received: {error}")
        else:
            self._note("unfinished", None)
            self._untold |= bool(shipped)
        for about, problem in self._streaming.problems(self._sampler).items():
            self._note(about, problem)

    def _ship_all(self) -> None:
        cluster = self._cluster
        self._has_switched = any(kind_of(file.name) is FileKind.HISTORY for file in self._waiting)
        for file in self._waiting:
            # A server that was replaced meanwhile makes the rest another cluster's.
            if cluster is None or cluster is not self._cluster or self._out_of_time():
                return
            self._ship(file, cluster)
            self._listen()
            self._tell(at_least_every=_CROWD if self._untold else self._options.heartbeat)
        if cluster is not None and cluster is self._cluster:
            cluster.settle()

    def _out_of_time(self) -> bool:
        if self._stop.is_set() and self._give_up_at is None:
            self._give_up_at = self._clock.monotonic() + _LAST_WORDS
        return self._give_up_at is not None and self._clock.monotonic() > self._give_up_at

    def _ship(self, file: Waiting, cluster: Cluster) -> None:
        refused = self._refused.get(file.name)
        if refused and refused.file == file and self._clock.monotonic() < refused.until:
            return
        if self._unremovable.get(file.name) != file:
            watch = Stopwatch(self._clock)
            try:
                if file.size > _LARGEST:
                    raise ObjectCorrupt(f"{file.size} bytes are more than a file of the log has")
                raw = self._spool.read(file)
                result = cluster.put(file.name, raw, level=self._options.level)
            except (ObjectConflict, ObjectCorrupt) as error:
                self._refused[file.name] = _Refused(file, self._clock.monotonic() + _REFUSED_FOR)
                self._note(file.name, f"{file.name} stays in the spool: {error}")
                return
            except OSError as error:
                self._note(file.name, f"{file.name} cannot be read: {error.strerror}")
                return
            cluster.stored(file.name)
            self._untold = True
            age = self._clock.wall().timestamp() - file.changed_ns / 1e9
            seconds = watch.elapsed().total_seconds()
            say("shipped", file=file.name, result=result, bytes=file.size, seconds=round(seconds, 3), age=round(age, 3))
        self._remove(file)

    def _remove(self, file: Waiting) -> None:
        try:
            self._spool.remove(file)
        except OSError as error:
            self._unremovable[file.name] = file
            self._note(file.name, f"{file.name} is stored, but cannot be removed from the spool: {error.strerror}")
            return
        self._unremovable.pop(file.name, None)
        self._refused.pop(file.name, None)
        self._waiting = tuple(other for other in self._waiting if other != file)
        self._note(file.name, None)

    def _note(self, about: str, problem: str | None) -> None:
        """Remember, and log once, that something is wrong, or no longer wrong."""
        if problem is None:
            if self._problems.pop(about, None) is not None:
                say("problem-over", about=about)
                self._untold = True
        elif self._problems.get(about) != problem:
            self._problems[about] = problem
            say("problem", logging.WARNING, about=about, problem=problem)
            self._untold = True

    def _tell(self, *, at_least_every: float) -> None:
        """Write the position where the last one is that old."""
        cluster, now = self._cluster, self._clock.monotonic()
        if cluster is None or now - self._told_at < at_least_every:
            return
        sample = cluster.sample
        problems = [problem for about, problem in self._problems.items() if about != "repository"]
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        position = Position(
            heartbeat_at=self._clock.wall(),
            at=sample.at if sample else None,
            lsn=sample.lsn if sample else None,
            timeline=sample.timeline if sample else None,
            segment_size=cluster.segment_size,
            stored_end=cluster.stored_end,
            mode=LogMode.STREAM if self._streaming is not None else LogMode.ARCHIVE,
            receiving=self._streaming is not None and self._streaming.receiving(self._sampler),
            drained=self._streaming is not None and not self._waiting and self._streaming.drained(self._sampler),
            recovery_point=cluster.recovery_point,
            recovery_lsn=cluster.recovery_lsn,
            quiet_xid=cluster.quiet_xid,
            server=ServerState.UP if self._sampler and self._sampler.up else ServerState.AWAY,
            spool_files=len(self._waiting),
            spool_bytes=sum(file.size for file in self._waiting),
            agent_version=__version__,
            agent_host=socket.gethostname(),
            foreign_from=cluster.foreign,
            problem="; ".join(problems[:3]) + more or None,
        )
        told = cluster.log.tell_position(position)
        displaced = "another server has taken this one's place: what that one's agent says stays"
        self._note("place", None if told else displaced)
        self._told_at, self._untold = now, False
