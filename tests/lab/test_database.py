"""The folder of the lab's database host: open to the server's user whatever the umask, and gone where nothing came."""

import os
import shutil
import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from dr_pipelines.errors import ProcessError
from dr_pipelines.lab import database
from dr_pipelines.processes.leases import Leases
from dr_pipelines.processes.ports import free_port
from dr_pipelines.processes.postgres import find_binaries
from dr_pipelines.settings import Settings


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def create(settings: Settings, leases: Leases) -> database.LabDatabase:
    return database.create(
        settings,
        leases,
        "lab-test",
        ttl=timedelta(minutes=5),
        archive_timeout=timedelta(seconds=30),
        size_bytes=100_000,
        progress=lambda done, total: None,
    )


@pytest.mark.usefixtures("private_umask")
def test_a_private_umask_does_not_keep_the_server_out(world_readable_folder: Path) -> None:
    settings = Settings(state_dir=world_readable_folder / "state")
    leases = Leases(settings.state_dir)
    try:
        assert create(settings, leases).data.is_dir()
    finally:
        leases.end_owner("lab-test")


def test_a_host_that_cannot_be_made_leaves_no_folder(world_readable_folder: Path) -> None:
    settings = Settings(state_dir=world_readable_folder / "state")
    broken = world_readable_folder / "bin"
    shutil.copytree(find_binaries(settings).folder, broken, copy_function=os.symlink)
    (broken / "initdb").unlink()
    (broken / "initdb").write_text("#!/bin/sh\necho No space left on device >&2\nexit 1\n")
    (broken / "initdb").chmod(0o755)
    settings = settings.model_copy(update={"postgres_bin": broken})

    with pytest.raises(ProcessError, match="No space left"):
        create(settings, Leases(settings.state_dir))

    assert not (settings.state_dir / "lab" / "lab-test").exists()


@pytest.mark.slow
def test_a_port_that_somebody_took_meanwhile_is_given_up(
    world_readable_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(state_dir=world_readable_folder / "state")
    leases = Leases(settings.state_dir)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = taken.getsockname()[1]
        ports = iter([busy, free_port()])
        monkeypatch.setattr(database, "free_port", lambda: next(ports))
        try:
            lab = create(settings, leases)
            assert lab.port != busy
            assert database.is_up(lab, leases)
            assert database.load(lab.folder) == lab
        finally:
            leases.end_owner("lab-test")
