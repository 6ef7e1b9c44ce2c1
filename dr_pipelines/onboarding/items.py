"""What a proposal is made of: items that say what, why and how to take it back, and the act that carries each out."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from psycopg.conninfo import make_conninfo
from pydantic import SecretStr

from dr_pipelines.engines.findings import Finding

__all__ = [
    "Act",
    "AppendRules",
    "Item",
    "Login",
    "MakeFolder",
    "MakeRepository",
    "MakeRole",
    "Mode",
    "Proposal",
    "RunSql",
    "State",
    "WriteFile",
    "hidden",
]


class Mode(StrEnum):
    """How the log leaves the server."""

    ARCHIVE = "archive"
    """archive_command hands each full segment to a spool, on the server's host."""
    STREAMING = "streaming"
    """A receiver takes the log as it is written, on this host or another."""


class State(StrEnum):
    """How an item stands."""

    DONE = "done"
    """It is as it should be already."""
    TO_DO = "to do"
    """`--apply` does it."""
    BY_HAND = "by hand"
    """Somebody has to do it: it needs rights that are not ours, or it is not ours to do."""


@dataclass(frozen=True)
class RunSql:
    """Statements for the administrator's connection, each committed by itself."""

    statements: tuple[str, ...]


@dataclass(frozen=True)
class MakeRole:
    """Statements about a role and its new password, where it gets one: all of it or nothing."""

    role: str
    statements: tuple[str, ...]
    password: SecretStr | None


@dataclass(frozen=True)
class AppendRules:
    """Lines for the end of pg_hba.conf, after which the server reads it again."""

    path: Path
    text: str


@dataclass(frozen=True)
class Login:
    """The role logs in, and connects as for a base backup; nothing is changed."""

    dsn: SecretStr


@dataclass(frozen=True)
class MakeFolder:
    """A folder with its mode, owner and group."""

    path: Path
    mode: int
    owner: str
    group: str


@dataclass(frozen=True)
class WriteFile:
    """A whole file, which appears under its name complete or not at all; None: mode and owner stay as they are."""

    path: Path
    content: str
    replaces: str | None
    """What it says now; None: it is not there. Where that is no longer so, nothing is written."""
    mode: int | None = None
    owner: str | None = None


@dataclass(frozen=True)
class MakeRepository:
    """A repository in an empty place; a folder becomes `owner`'s own."""

    url: str
    owner: str


Act = RunSql | MakeRole | AppendRules | Login | MakeFolder | WriteFile | MakeRepository


@dataclass(frozen=True)
class Item:
    """One thing that the setup needs."""

    key: str
    """Its stable name, for programs."""
    title: str
    why: str
    state: State
    text: str = ""
    """What is written or carried out, or is to be by hand; without secrets."""
    undo: str = ""
    """How to take it back once it was done."""
    acts: tuple[Act, ...] = ()

    def described(self) -> dict[str, object]:
        """For `--json`."""
        names = ("key", "title", "state", "why", "text", "undo")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Proposal:
    """Everything that makes a service protected, in the order in which it is done."""

    service: str
    mode: Mode
    mode_reason: str
    findings: tuple[Finding, ...]
    """What was seen of the server and of this machine."""
    items: tuple[Item, ...]
    environment: Mapping[str, str]
    """What the agent's environment file says once all is done; holds secrets."""
    agent_user: str
    command: Path
    """`dr`, as the agent's user calls it."""
    new_password: SecretStr | None
    """The role's, where it gets one."""
    next_steps: tuple[str, ...]
    """What comes after the items."""

    def left(self, state: State) -> tuple[Item, ...]:
        """The items that stand like this."""
        return tuple(item for item in self.items if item.state is state)


def hidden(dsn: str) -> str:
    """A connection string with its password out of sight, in its place."""
    return make_conninfo(dsn, password="***")
