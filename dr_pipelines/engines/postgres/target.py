"""The target of a restore: a new, empty folder, with a lock, that a killed restore can be recognised in.

What the restore itself keeps while it works (lock, notes, WAL fetched ahead) lies in `<target>/dr_restore/`, which is
removed when the restored server stands; only the server's access rules lie beside the source's.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dr_pipelines.errors import ConfigurationError, Locked, RestoreError, TargetRefused
from dr_pipelines.processes.identity import Identity, check_reachable, give_to

__all__ = [
    "ACCESS_RULES",
    "OURS",
    "PRIVATE",
    "Note",
    "check",
    "claim",
    "hand_over",
    "hold",
    "let_go",
    "read_note",
    "release",
    "writing",
]

PRIVATE = "dr_restore"
ACCESS_RULES = "dr_restore.hba.conf"
"""Not in the folder: what it takes from pg_hba.conf names other files, and means those beside it."""
OURS = (PRIVATE, ACCESS_RULES)
"""What a restore puts into the data directory that is none of the cluster's."""
_NOTE = "restore.json"
_DRAFT = ".restore.json."
_LOCK = "lock"
_LOG = "server.log"
"""What a restored server that goes on running writes to."""

_held: dict[Path, int] = {}
_registry = threading.Lock()


@dataclass(frozen=True)
class Note:
    """Whose restore a target holds."""

    execution_id: str
    backup_id: str
    system_identifier: str
    taken_over: bool = False
    """Its server takes, or has taken, the lost one's place: nothing may be restored into it any more."""


def claim(target: Path, note: Note, identity: Identity | None) -> bool:
    """Make the target ours, and hold it; True where this execution had claimed it before and goes on.

    Raises TargetRefused where it is anything else than a new or empty folder, Locked where another process holds it;
    nothing in it is touched then.
    """
    if check(target, note, identity):
        hold(target, identity)
        return True
    _make_parents(target.parent)
    private = target / PRIVATE
    for folder in (target, private):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
        give_to(folder, identity)
    # Before the note: whoever sees a note can tell whether somebody is at work on it.
    hold(target, identity)
    # Last, and whole or not at all: a claim that was interrupted before leaves what is as good as empty.
    draft = _draft(private, note, identity)
    try:
        os.link(draft, private / _NOTE)
    except FileExistsError:
        raise TargetRefused(f"{target} was claimed by another restore in this moment", hint="give another") from None
    finally:
        draft.unlink()
    return False


def _draft(private: Path, note: Note, identity: Identity | None) -> Path:
    draft = private / f"{_DRAFT}{secrets.token_hex(4)}"
    with draft.open("w") as file:
        file.write(json.dumps(asdict(note)))
        file.flush()
        # A note that a crash of the machine left empty could not be told from somebody else's.
        os.fsync(file.fileno())
    draft.chmod(0o600)
    give_to(draft, identity)
    return draft


def hand_over(target: Path, identity: Identity | None) -> None:
    """The restored server is about to take the lost one's place: keep the note of whose it is, and the lock, alone.

    From then on no restore goes on with this target. The restored server, which used the rest, has been stopped.
    Idempotent.
    """
    note, private = read_note(target), target / PRIVATE
    assert note is not None
    if not note.taken_over:
        _draft(private, replace(note, taken_over=True), identity).replace(private / _NOTE)
    for entry in private.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name not in (_NOTE, _LOCK):
            entry.unlink()
    (target / ACCESS_RULES).unlink(missing_ok=True)


def check(target: Path, note: Note, identity: Identity | None) -> bool:
    """Whether `claim` would go on with an earlier claim; raises as it does. Changes nothing."""
    if not target.is_absolute():
        raise TargetRefused(f"{target} is not an absolute path")
    if target.is_symlink():
        raise TargetRefused(f"{target} is a link", hint="give the folder itself")
    if (earlier := read_note(target)) is not None:
        if earlier.taken_over and earlier.execution_id == note.execution_id:
            raise TargetRefused(
                f"{target} holds the server that takes the lost one's place ({earlier.execution_id})",
                hint="its cutover is gone on with, not its restore",
            )
        if earlier != note:
            raise TargetRefused(
                f"{target} holds the unfinished restore of another execution ({earlier.execution_id})",
                hint=f"resume that one, give another target, or remove {target} yourself",
            )
        return True
    if target.exists():
        if not target.is_dir():
            raise TargetRefused(f"{target} is not a folder")
        if (target / "postmaster.pid").exists():
            raise TargetRefused(f"{target} is the data directory of a server that runs", hint="give a new folder")
        if not all(_is_interrupted_claim(entry) for entry in target.iterdir()):
            raise TargetRefused(f"{target} is not empty", hint="a restore goes to a new or empty folder")
    above = next(folder for folder in (target, *target.parents) if folder.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        raise TargetRefused(f"nothing can be written into {above}", hint="is its file system mounted read-only?")
    try:
        check_reachable(target, identity)
    except ConfigurationError as error:
        hint = "give a target that everybody can reach, such as one below /var/lib or /srv"
        raise TargetRefused(error.message, hint=hint) from None
    return False


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """While the block writes to a claimed target: what the operating system refuses is raised as RestoreError."""
    try:
        yield
    except OSError as error:
        resume = "then resume the restore: what is written stays, the same command goes on from there"
        hint = {
            errno.ENOSPC: f"make room on its file system, {resume}",
            errno.EDQUOT: f"raise the quota, {resume}",
            errno.EROFS: f"after a disk's error the kernel does that by itself; make it writable, {resume}",
            errno.EIO: "the disk reports an error, the kernel's log says more; give a target on another one",
        }.get(error.errno or 0, "")
        place = error.filename or target
        raise RestoreError(f"{place} cannot be written: {error.strerror or error}", hint=hint) from error


def _is_interrupted_claim(entry: Path) -> bool:
    return entry.name == PRIVATE and all(kept.name.startswith(_DRAFT) or kept.name == _LOCK for kept in entry.iterdir())


def read_note(target: Path) -> Note | None:
    """The note of an unfinished restore, or None."""
    try:
        return Note(**json.loads((target / PRIVATE / _NOTE).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, OSError):
        raise TargetRefused(f"{target / PRIVATE / _NOTE} cannot be read", hint="give another target") from None


def hold(target: Path, identity: Identity | None) -> None:
    """Keep every other process away from a claimed target until `let_go`, `release` or this process's end.

    Whoever holds it already in this process passes. Raises Locked where another process holds it.
    """
    place = target.resolve()
    with _registry:
        earlier = _held.get(place)
        if earlier is not None:
            if _is_open_at(earlier, place / PRIVATE / _LOCK):
                return
            os.close(_held.pop(place))
        descriptor = os.open(place / PRIVATE / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            give_to(place / PRIVATE / _LOCK, identity)
        except BlockingIOError:
            os.close(descriptor)
            raise Locked(
                f"another process is restoring into {target}", hint="wait for its end, or give another target"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        _held[place] = descriptor


def let_go(target: Path) -> None:
    """Hold the target no longer. Idempotent."""
    with _registry:
        descriptor = _held.pop(target.resolve(), None)
    if descriptor is not None:
        os.close(descriptor)


def _is_open_at(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is still the one that lies there: the target may have been removed since."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def release(target: Path, *, server_runs: bool) -> None:
    """The restore is over and cannot be resumed any more: remove what it kept for itself. Idempotent.

    What a server that goes on running uses (its access rules, its log) stays, and becomes the server's own: a base
    backup of it reads everything in the data directory.
    """
    private = target / PRIVATE
    if not server_runs:
        shutil.rmtree(private, ignore_errors=True)
        (target / ACCESS_RULES).unlink(missing_ok=True)
    elif private.is_dir():
        (private / _NOTE).unlink(missing_ok=True)
        owner = target.stat()
        for entry in private.iterdir():
            if entry.name == _LOG:
                if os.geteuid() == 0:
                    os.chown(entry, owner.st_uid, owner.st_gid)
                entry.chmod(0o600)
            elif entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    let_go(target)


def _make_parents(folder: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir()
        path.chmod(0o755)
