"""The repository as a whole: how it is recognised, and where in it things are.

dr-repository.json     what makes a folder or bucket a repository
services/<service>/    backups, log and locks of a service
records/               accounts of executions
plans/                 every recovery plan that was in force, and which is the current one
drills/<name>/         repositories of their own, for what a drill backs up
"""

import hashlib
import logging
import uuid
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

from dr_pipelines.errors import (
    ConfigurationError,
    FormatTooNew,
    ObjectCorrupt,
    ObjectMissing,
    RepositoryError,
    RepositoryMissing,
)
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.repository.identifiers import check_name, is_name
from dr_pipelines.repository.records import Records
from dr_pipelines.repository.sealed import seal, unseal
from dr_pipelines.repository.store import Store
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock, SystemClock, format_moment

__all__ = ["Repository", "is_empty", "open_repository"]

FORMAT_VERSION = 1
_log = logging.getLogger(__name__)
_ROOT = "dr-repository.json"
_CURRENT_PLAN = "plans/current.json"
_ANOTHER_ROOT = "put it back from a copy of the repository; that of any other repository of this format will do as well"
_ANOTHER_PLAN = "DR_PLAN names a plan's file, which goes before the copy; a restore does without"


class Repository:
    """An opened repository."""

    def __init__(self, store: Store, format_version: int, repository_id: str) -> None:
        self.store = store
        self.format_version = format_version
        self.id = repository_id
        self.records = Records(store)

    @property
    def url(self) -> str:
        """Where it is, for people; without secrets."""
        return self.store.url

    def confirm(self) -> None:
        """Raise RepositoryError where this repository is not in its place any more: what else is there is not ours."""
        try:
            found = _read_root(self.store).id
        except ObjectMissing:
            found = None
        if found != self.id:
            raise RepositoryError(
                f"{self.url} is no longer the repository that it was" + ("" if found else f": it has no {_ROOT}"),
                hint="was the bucket or folder emptied, or made anew? put it back from a copy, then everything goes on",
            )

    def service(self, name: str) -> Store:
        """What is stored of one service."""
        return self.store.child(f"services/{check_name(name, 'service')}")

    def services(self) -> list[str]:
        """The services of which something is stored."""
        return [name.removesuffix("/") for name in self.store.names("services") if name.endswith("/")]

    def sandbox(self, name: str) -> "Repository":
        """A repository of its own inside this one, made where it is not there yet: for what a drill backs up."""
        return _open(self.store.child(_sandbox(name)), create=True, clock=SystemClock())

    def remove_sandbox(self, name: str) -> None:
        """Remove a sandbox with everything in it. Idempotent; what an interruption leaves is still a repository."""
        store = self.store.child(_sandbox(name))
        for item in list(store.list("")):
            if item.key != _ROOT:
                store.delete(item.key)
        store.delete(_ROOT)

    def old_sandboxes(self, before: datetime) -> list[str]:
        """The sandboxes to which nothing was written since: their drills are over, or were killed."""
        names = [name.removesuffix("/") for name in self.store.names("drills") if name.endswith("/")]
        return [
            name
            for name in names
            if is_name(name) and all(found.modified < before for found in self.store.list(f"{_sandbox(name)}/"))
        ]

    def remember_plan(self, plan_text: str) -> str:
        """Keep a copy of the recovery plan as the current one; returns its key."""
        data = plan_text.encode()
        digest = hashlib.sha256(data).hexdigest()
        self.store.put_if_absent(_plan_key(digest), [data])
        pointer = seal({"plan_sha256": digest})
        try:
            if self.store.get(_CURRENT_PLAN) == pointer:
                return _plan_key(digest)
        except ObjectMissing:
            pass
        self.store.put(_CURRENT_PLAN, [pointer])
        return _plan_key(digest)

    def latest_plan(self) -> str | None:
        """The current recovery plan's text, None where none was kept yet. Raises ObjectCorrupt."""
        try:
            pointer = self.store.get(_CURRENT_PLAN)
        except ObjectMissing:
            return None
        try:
            digest = str(unseal(pointer, what="the pointer to the current plan").get("plan_sha256"))
            data = self.store.get(_plan_key(digest))
        except (ObjectCorrupt, ObjectMissing) as error:
            raise type(error)(error.message, hint=_ANOTHER_PLAN) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise ObjectCorrupt(
                f"the copy of the plan {digest[:12]} is damaged: its hash does not match", hint=_ANOTHER_PLAN
            )
        return data.decode()


def open_repository(url: str, *, settings: Settings, create: bool = False, clock: Clock | None = None) -> Repository:
    """Open the repository at `url`, a folder's path or s3://bucket/prefix, with the keys that the settings have.

    With `create` an empty place, or one that does not exist, becomes a repository; a place with other content never
    does. Raises RepositoryMissing where there is no repository, FormatTooNew, RepositoryUnreachable; ConfigurationError
    where the URL can name none.
    """
    store = _store_at(url, settings, create)
    repository = _open(store, create=create, clock=clock or SystemClock())
    if isinstance(store, FolderStore):
        # Only now: the `.tmp` of a folder that is no repository is none of ours.
        try:
            store.clean()
        except RepositoryError as error:
            _log.warning("leftovers stay, which does not matter where the repository is only read: %s", error)
    return repository


def is_empty(url: str, *, settings: Settings) -> bool:
    """Whether nothing is in the place, so that a repository can be made there. Raises as `open_repository` does."""
    return not _store_at(url, settings, create=False).names("")


def _store_at(url: str, settings: Settings, create: bool) -> Store:
    pieces = urlsplit(url)
    if pieces.scheme == "s3":
        if not pieces.netloc:
            raise ConfigurationError(f"{url!r} names no bucket", hint="give s3://bucket/prefix")
        # Whoever has a folder does without boto3, which takes its time to load.
        from dr_pipelines.repository.s3 import S3Store

        store = S3Store(
            pieces.netloc,
            pieces.path.strip("/"),
            endpoint=settings.s3_endpoint,
            region=settings.s3_region,
            access_key_id=settings.s3_access_key_id,
            secret_access_key=settings.s3_secret_access_key,
        )
        store.find_bucket(create=create)
        return store
    if pieces.scheme not in ("", "file") or (pieces.scheme == "file" and pieces.netloc):
        raise ConfigurationError(f"{url!r} cannot be a repository", hint="give a folder's path or s3://bucket/prefix")
    if not (path := pieces.path if pieces.scheme == "file" else url):
        raise ConfigurationError("the repository's place is empty", hint="give a folder's path or s3://bucket/prefix")
    return FolderStore(Path(path).expanduser())


def _open(store: Store, *, create: bool, clock: Clock) -> Repository:
    try:
        return _read_root(store)
    except ObjectMissing:
        pass
    found = store.names("")
    if _ROOT in found:
        return _read_root(store)  # somebody else has just made it
    if "services/" in found:
        raise RepositoryError(f"{store.url} has no {_ROOT}, without which it is no repository", hint=_ANOTHER_ROOT)
    if found:
        raise RepositoryMissing(
            f"{store.url} is not a repository, and not empty: it has {', '.join(found[:3])}",
            hint="give a new, empty place; is DR_REPOSITORY right?",
        )
    if not create:
        raise RepositoryMissing(
            f"there is no repository in {store.url}",
            hint="is DR_REPOSITORY right, is its disk mounted? `dr backup full SERVICE --create` makes one there",
        )
    root = seal({"format_version": FORMAT_VERSION, "id": str(uuid.uuid4()), "created_at": format_moment(clock.wall())})
    store.put_if_absent(_ROOT, [root])
    if store.put_if_absent(_ROOT, [root]):
        raise RepositoryError(
            f"{store.url} ignores If-None-Match, so two writers would replace each other's data",
            hint="use a service that keeps conditional writes, as AWS S3, MinIO and SeaweedFS do",
        )
    return _read_root(store)


def _read_root(store: Store) -> Repository:
    what = f"{_ROOT} of {store.url}"
    try:
        fields = unseal(store.get(_ROOT), what=what)
    except ObjectCorrupt as error:
        raise ObjectCorrupt(error.message, hint=_ANOTHER_ROOT) from None
    version, repository_id = fields.get("format_version"), fields.get("id")
    if not isinstance(version, int) or not isinstance(repository_id, str):
        raise ObjectCorrupt(f"{what} lacks format_version or id")
    if version > FORMAT_VERSION:
        raise FormatTooNew(
            f"{store.url} has repository format {version}, this version reads up to {FORMAT_VERSION}",
            hint="use the version of dr_pipelines that wrote it, or a newer one",
        )
    return Repository(store, version, repository_id)


def _sandbox(name: str) -> str:
    return f"drills/{check_name(name, 'sandbox')}"


def _plan_key(digest: str) -> str:
    return f"plans/{digest}.yaml"
