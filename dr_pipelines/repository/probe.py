"""Whether a repository takes objects, found out by storing one and removing it again."""

import secrets

from dr_pipelines.errors import RepositoryError
from dr_pipelines.repository.store import Store

__all__ = ["check_writable"]


def check_writable(store: Store) -> None:
    """Store a small object and remove it.

    Raises RepositoryError where either is refused, or where a second writer would replace what the first one stored.
    """
    key = f"probe-{secrets.token_hex(8)}"
    store.put_if_absent(key, [b"probe\n"])
    replaced = store.put_if_absent(key, [b"another\n"])
    store.delete(key)
    if replaced:
        raise RepositoryError(
            f"{store.url} ignores If-None-Match, so two writers would replace each other's data",
            hint="use a service that keeps conditional writes, as AWS S3, MinIO and SeaweedFS do",
        )
