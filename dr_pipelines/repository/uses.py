"""Notes of those who are reading a backup, `uses/<user>.json` beside the backups: what is noted does not expire.

A reader takes no lock, since a restore must not wait for anybody. It writes its note first and looks for the manifest
then; whoever removes a backup takes the manifest away first and looks for notes then. So one of the two sees the other,
whichever came first. A note that nobody renews is worth nothing after `STAYS`, which is long enough for a restore that
was killed to be gone on with.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from dr_pipelines.errors import ObjectCorrupt, ObjectMissing, RepositoryError
from dr_pipelines.repository.identifiers import check_name
from dr_pipelines.repository.patience import patiently
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.timing import Clock, format_moment

__all__ = ["STAYS", "Use", "clear_uses", "forget_use", "note_use", "read_uses", "renewed"]

STAYS = timedelta(days=1)
"""How long a note outlives its last renewal."""
_log = logging.getLogger(__name__)


class Use(BaseModel):
    """Who reads which backup, and until when that is believed."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    user: str
    """A restore, by its execution's id."""
    backup_id: str
    host: str
    noted_at: AwareDatetime
    expires_at: AwareDatetime


def note_use(store: Store, user: str, backup_id: str, clock: Clock) -> None:
    """Keep the backup from being removed for a day; to be called again before that is over, by `renewed`."""
    now = clock.wall()
    use = Use(user=user, backup_id=backup_id, host=socket.gethostname(), noted_at=now, expires_at=now + STAYS)
    patiently(lambda: store.put(_key(user), [seal(use.model_dump(mode="json"))]), clock)


@contextlib.contextmanager
def renewed(store: Store, user: str, backup_id: str, clock: Clock) -> Iterator[None]:
    """Keep the backup from being removed while the block runs, and for a day after that."""
    over = threading.Event()

    def go_on() -> None:
        while not over.wait(STAYS.total_seconds() / 24):
            try:
                note_use(store, user, backup_id, clock)
            except RepositoryError as error:  # the next attempt comes long before the note is worth nothing
                _log.warning("that %s reads %s could not be noted again: %s", user, backup_id, error)

    note_use(store, user, backup_id, clock)
    thread = threading.Thread(target=go_on, name=f"use of {backup_id}", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def forget_use(store: Store, user: str) -> None:
    """The reader has ended; nothing happens where it had noted nothing."""
    store.delete(_key(user))


def read_uses(store: Store, now: datetime) -> tuple[Use, ...]:
    """Who reads now. Raises ObjectCorrupt where a note that may still count cannot be read."""
    return tuple(use for use in _all(store, now) if use.expires_at > now)


def clear_uses(store: Store, now: datetime) -> None:
    """Remove the notes of readers that have not been heard of for long."""
    for use in _all(store, now):
        if use.expires_at <= now:
            forget_use(store, use.user)


def _all(store: Store, now: datetime) -> Iterator[Use]:
    for name in store.names("uses"):
        key = f"uses/{name}"
        what = f"the note {key} of a restore that reads a backup"
        try:
            use = Use.model_validate(unseal(store.get(key), what=what))
        except ObjectMissing:
            continue  # it has ended in this moment
        except (ObjectCorrupt, ValidationError) as error:
            info = store.info(key)
            if info is None or info.modified + STAYS <= now:
                continue
            raise ObjectCorrupt(
                f"{what} cannot be read, so nothing may be removed: {error}",
                hint=f"it counts until {format_moment(info.modified + STAYS)}; remove it where no restore is running",
            ) from None
        if name == f"{use.user}.json":
            yield use


def _key(user: str) -> str:
    return f"uses/{check_name(user, 'reader')}.json"
