"""What an agent that streams a server's log is waited for: that it receives, and that it has stored what it had."""

from datetime import timedelta

from dr_pipelines.engines.postgres.exposure import HEARTBEAT_LIMIT
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import LogMode, Position, ServerState
from dr_pipelines.errors import BackupError, ObjectCorrupt
from dr_pipelines.timing import Clock, wait_until

__all__ = ["await_drained", "await_receiving"]

_SIGN_OF_LIFE = 3.0
"""Seconds in which an agent that streams, and lives, says something; it does every second."""
_SILENT = HEARTBEAT_LIMIT + timedelta(seconds=_SIGN_OF_LIFE)
_PATIENCE = 30.0
_CONNECTED = 15.0
"""Seconds that an agent may take to be connected to its server again."""


def await_receiving(log: Log, clock: Clock) -> bool:
    """Whether an agent streams the log; waits until it receives, since a backup that begins before lacks its own log.

    Raises BackupError where it should and does not, RepositoryError.
    """
    newest: list[Position] = []

    def streams() -> bool:
        position = _told(log)
        newest[:] = [position] if position is not None else []
        silent = position is None or abs(clock.wall() - position.heartbeat_at) > _SILENT
        return position is not None and position.mode is LogMode.STREAM and not silent

    if not streams():
        return False
    # One that has gone meanwhile is none that anybody waits for.
    if wait_until(lambda: not streams() or newest[0].receiving, timeout=_CONNECTED, clock=clock, interval=0.2):
        return bool(newest and newest[0].receiving)
    raise BackupError(
        f"the agent is to stream the log, and receives nothing: {newest[0].problem or 'its log says why'}",
        hint="dr doctor",
    )


def await_drained(log: Log, clock: Clock) -> bool | None:
    """Wait until an agent that streams the log, and is alive, has stored all that it had received.

    True where it has. False where it had not within half a minute. None where there is nothing to wait for: the log is
    not streamed, the agent is gone too, or its server runs. Raises RepositoryError.
    """
    before = _told(log)
    if before is None or before.mode is not LogMode.STREAM:
        return None
    if abs(clock.wall() - before.heartbeat_at) > _SILENT:
        return None
    newest: list[Position] = [before]

    def has_spoken() -> bool:
        position = _told(log)
        newest[:] = [position] if position is not None else newest
        return newest[0].heartbeat_at != before.heartbeat_at

    if not wait_until(has_spoken, timeout=_SIGN_OF_LIFE, clock=clock, interval=0.1):
        return None
    if newest[0].server is ServerState.UP:
        return None

    def is_drained() -> bool:
        return has_spoken() and (newest[0].drained or newest[0].server is ServerState.UP)

    return wait_until(is_drained, timeout=_PATIENCE, clock=clock, interval=0.1)


def _told(log: Log) -> Position | None:
    try:
        return log.read_position()
    except ObjectCorrupt:
        # An agent that lives writes it anew; what it means for a restore, the coverage says.
        return None
