"""The errors that this project raises on purpose.

    DrError                       exit code  what it means
    ├── UsageError                2          a command was called wrongly
    ├── ConfigurationError        2          the environment or the machine is not set up
    │   ├── MissingSoftware       2          a server or tool that is needed is not installed
    │   └── NoIncrementals        2          the server makes no incremental backups
    ├── PlanError                 2          the recovery plan cannot be accepted
    ├── RepositoryError           1          the repository cannot be read or written
    │   ├── RepositoryUnreachable 1          (a retry can help)
    │   ├── RepositoryMissing     2          there is none in the place that is named
    │   ├── ObjectMissing         1          an object that was asked for is not there
    │   ├── ObjectConflict        1          an object is there already, with other content
    │   ├── ObjectCorrupt         1          what is stored is not what was written
    │   └── FormatTooNew          1          written by a newer version of this project
    ├── Locked                    1          somebody else holds the lock (a retry can help)
    ├── ProcessError              1          a server or tool ended badly or did not answer
    ├── BackupError               1          a backup could not be made
    ├── RestoreError              1          a restore could not be carried out
    │   ├── NotCovered            2          the time asked for is not in the repository
    │   ├── AmbiguousTimeline     2          the time asked for is on more than one timeline
    │   ├── TargetRefused         2          the target is not a new, empty place
    │   └── LogGap                1          the log has a hole
    └── ExecutionError            1          a runbook's execution cannot go on

Each error carries a stable code (its class name in kebab-case), the operation and its subject, a hint that says what
to do next, and whether trying the same again can help.
"""

import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class DrError(Exception):
    """What went wrong, with what, and what to do about it.

    `str(error)` is one line for a person: the message, then the hint where there is one.
    """

    exit_code = 1
    retryable = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        # Some of it comes from repositories and servers: nothing in it may steer a terminal.
        self.message = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message)
        self.hint = hint

    @property
    def code(self) -> str:
        """The stable name of this kind of error, for `--json` and for logs."""
        return re.sub(r"(?<!^)(?=[A-Z])", "-", type(self).__name__).lower()

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process boundaries (Dagster pickles them); the default would lose the hint.
        return (_rebuild, (type(self), self.message, self.hint))


def _rebuild(kind: type[DrError], message: str, hint: str) -> DrError:
    return kind(message, hint=hint)


class UsageError(DrError):
    """A command was called with arguments that do not fit."""

    exit_code = 2


class ConfigurationError(DrError):
    """The environment or this machine is not set up for what was asked."""

    exit_code = 2


class MissingSoftware(ConfigurationError):
    """A server or tool that is needed is not installed; the hint names the command that installs it."""


class NoIncrementals(ConfigurationError):
    """The server makes no incremental backups: its version has none, or it does not summarize its log."""


class PlanError(DrError):
    """The recovery plan cannot be accepted; the message holds file, line, field and what is expected."""

    exit_code = 2


class RepositoryError(DrError):
    """The repository cannot be read or written."""


class RepositoryUnreachable(RepositoryError):
    """The repository did not answer, or refused for a reason that may pass."""

    retryable = True


class RepositoryMissing(RepositoryError):
    """There is no repository in the place that is named; nothing was made of it."""

    exit_code = 2


class ObjectMissing(RepositoryError):
    """An object that was asked for is not in the repository."""


class ObjectConflict(RepositoryError):
    """An object of that name is there already, with other content; nothing was replaced."""


class ObjectCorrupt(RepositoryError):
    """What is stored is not what was written: a hash, a size or a format does not match."""


class FormatTooNew(RepositoryError):
    """Written by a newer version of this project than this one."""


class Locked(DrError):
    """Somebody else holds the lock; the message names the holder."""

    retryable = True


class ProcessError(DrError):
    """A server or tool ended badly or did not answer in time; the message holds the end of its output."""


class BackupError(DrError):
    """A backup could not be made; nothing that lists as complete was left."""


class RestoreError(DrError):
    """A restore could not be carried out."""


class NotCovered(RestoreError):
    """The time asked for is outside what the repository covers; the message holds the covered range."""

    exit_code = 2


class AmbiguousTimeline(RestoreError):
    """More than one timeline has the time asked for; the message names them, and somebody has to say which is meant."""

    exit_code = 2


class TargetRefused(RestoreError):
    """The target is not a new, empty place with enough room; nothing in it was touched."""

    exit_code = 2


class LogGap(RestoreError):
    """The log has a hole; the message names what is missing and the range of time that is lost."""


class ExecutionError(DrError):
    """A runbook's execution cannot go on as asked."""
