"""Whether an agent that survived a server's loss still has something of its log to store."""

from datetime import timedelta

from dr_pipelines.engines.postgres.exposure import HEARTBEAT_LIMIT
from dr_pipelines.engines.postgres.log import Log
from dr_pipelines.engines.postgres.position import LogMode, Position, ServerState
from dr_pipelines.timing import Clock, wait_until

__all__ = ["await_drained"]

_SIGN_OF_LIFE = 3.0
"""Seconds in which an agent that streams, and lives, says something; it does every second."""
_PATIENCE = 30.0


def await_drained(log: Log, clock: Clock) -> bool | None:
    """Wait until an agent that streams the log, and is alive, has stored all that it had received.

    True where it has. False where it had not within half a minute. None where there is nothing to wait for: the log is
    not streamed, the agent is gone too, or its server runs. Raises RepositoryError.
    """
    before = log.read_position()
    if before is None or before.mode is not LogMode.STREAM:
        return None
    if abs(clock.wall() - before.heartbeat_at) > HEARTBEAT_LIMIT + timedelta(seconds=_SIGN_OF_LIFE):
        return None
    newest: list[Position] = [before]

    def has_spoken() -> bool:
        position = log.read_position()
        newest[:] = [position] if position is not None else newest
        return newest[0].heartbeat_at != before.heartbeat_at

    if not wait_until(has_spoken, timeout=_SIGN_OF_LIFE, clock=clock, interval=0.1):
        return None
    if newest[0].server is ServerState.UP:
        return None

    def is_drained() -> bool:
        return has_spoken() and (newest[0].drained or newest[0].server is ServerState.UP)

    return wait_until(is_drained, timeout=_PATIENCE, clock=clock, interval=0.1)
