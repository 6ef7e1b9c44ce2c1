"""An S3 service on this machine to measure with."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.seaweed import ObjectStorage
from dr_pipelines.settings import Settings, load_settings

__all__ = ["on_s3"]


@contextmanager
def on_s3(folder: Path) -> Iterator[Settings]:
    """Settings whose repository is a bucket of a SeaweedFS of its own, its data below the folder; ended at the end."""
    settings = load_settings().model_copy(update={"state_dir": folder / "state"})
    leases = Leases(settings.state_dir)
    storage = ObjectStorage.start(settings, leases, owner="benchmark-s3", folder=folder / "s3")
    try:
        yield settings.model_copy(
            update={
                "repository": f"s3://{storage.bucket}/benchmark",
                "s3_endpoint": storage.endpoint,
                "s3_region": storage.region,
                "s3_access_key_id": SecretStr(storage.access_key),
                "s3_secret_access_key": SecretStr(storage.secret_key),
            }
        )
    finally:
        storage.stop(leases)
