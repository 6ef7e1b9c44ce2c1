"""Where the repository is, when nobody has said: the lab's own, below the state folder."""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr

from dr_pipelines.processes.identity import open_folder
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import shared_object_storage
from dr_pipelines.settings import Settings
from dr_pipelines.timing import Clock

__all__ = ["placed"]


@contextmanager
def placed(settings: Settings, clock: Clock) -> Iterator[Settings]:
    """Settings that name a repository: the configured one, or the lab's own, which answers while the block runs.

    The lab's is an S3 service on this machine (SeaweedFS), as production has one, or with `lab_repository` "folder" a
    folder; both keep what is in them between two uses.
    """
    if settings.repository is not None:
        yield settings
    elif settings.lab_repository == "folder":
        folder = open_folder(settings.state_dir) / "repository"
        yield settings.model_copy(update={"repository": str(folder)})
    else:
        with shared_object_storage(settings, Leases(settings.state_dir, clock)) as storage:
            yield settings.model_copy(
                update={
                    "repository": f"s3://{storage.bucket}/lab",
                    "s3_endpoint": storage.endpoint,
                    "s3_region": storage.region,
                    "s3_access_key_id": SecretStr(storage.access_key),
                    "s3_secret_access_key": SecretStr(storage.secret_key),
                }
            )
