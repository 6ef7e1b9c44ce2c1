"""What differs from machine to machine, from the environment, with `DR_` before each name.

What was promised stands in the recovery plan; where the repository is, how a server is reached and where scratch files
may lie stands here. Values for one service are named by it: `DR_DSN__DATABASE`, `DR_SPOOL__DATABASE`.
"""

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from dr_pipelines.errors import ConfigurationError

__all__ = ["Settings", "load_settings", "service_key", "variable"]


def _default_state_dir() -> Path:
    # Not below /root: the unprivileged servers must be able to reach what lies here.
    if os.geteuid() == 0:
        return Path("/var/lib/dr_pipelines")
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "dr_pipelines"
    except RuntimeError:
        raise ConfigurationError(
            f"the user {os.geteuid()} has no home folder", hint="set DR_STATE_DIR to a folder that is yours"
        ) from None


class Settings(BaseSettings):
    """This machine's settings; each field is the variable `DR_<NAME>`."""

    # An empty variable is how a compose file or a unit says that nothing was given.
    model_config = SettingsConfigDict(
        env_prefix="DR_", env_nested_delimiter="__", env_ignore_empty=True, extra="ignore", frozen=True
    )

    state_dir: Annotated[Path, Field(description="leases, scratch servers, Dagster's home; readable by all")] = Field(
        default_factory=_default_state_dir
    )
    plan: Annotated[Path, Field(description="the recovery plan")] = Path("recovery-plan.yaml")
    repository: Annotated[
        str | None, Field(description="a folder's path or s3://bucket/prefix; unset: the lab's own")
    ] = None
    lab_repository: Annotated[str, Field(description="what the lab's own repository is", pattern="^(s3|folder)$")] = (
        "s3"
    )
    s3_endpoint: Annotated[
        str | None, Field(description="URL of the S3 service, where it is not AWS's", pattern=r"^https?://[^/]")
    ] = None
    s3_region: str = "us-east-1"
    s3_access_key_id: SecretStr | None = None
    s3_secret_access_key: SecretStr | None = None
    dsn: Annotated[dict[str, SecretStr], Field(description="by service: how its server is reached")] = {}
    spool: Annotated[dict[str, Path], Field(description="by service: the folder archive_command puts segments in")] = {}
    log: Annotated[
        dict[str, Literal["archive", "stream"]],
        Field(description="by service: archive (archive_command hands segments over; where left out) or stream"),
    ] = {}
    fence: Annotated[
        dict[str, str], Field(description="by service: the command that puts its old server out of action in a cutover")
    ] = {}
    switch: Annotated[
        dict[str, str], Field(description="by service: the command that leads its clients to the new server")
    ] = {}
    client_dsn: Annotated[
        dict[str, SecretStr], Field(description="by service: how a client connects, asked after a cutover")
    ] = {}
    connection_file: Annotated[
        dict[str, Path], Field(description="by service: the libpq service file that its clients follow")
    ] = {}
    postgres_bin: Annotated[Path | None, Field(description="folder of the PostgreSQL binaries to use")] = None
    server_user: Annotated[
        str | None, Field(description="as root: the user that servers run as; unset: postgres, else nobody")
    ] = None
    workers: Annotated[int, Field(description="parts or segments handled at a time", ge=1, le=32)] = 2
    part_size: Annotated[int, Field(description="bytes of file data in one part", ge=1 << 16, le=1 << 28)] = 32 << 20
    compression_level: Annotated[int, Field(ge=1, le=19)] = 1

    @property
    def has_plan(self) -> bool:
        """Whether the plan's file is there. Raises ConfigurationError where that cannot be seen."""
        try:
            return self.plan.exists()
        except OSError as error:
            raise ConfigurationError(
                f"{self.plan} cannot be looked at: {error.strerror}", hint="DR_PLAN names the plan's file"
            ) from None

    @cached_property
    def dagster_home(self) -> Path:
        """Where Dagster keeps its own database, unless DAGSTER_HOME says otherwise."""
        home = os.environ.get("DAGSTER_HOME")
        return Path(home) if home else self.state_dir / "dagster"

    def dsn_of(self, service: str) -> str | None:
        """The connection string of a service, or None where none was given."""
        secret = self.dsn.get(service_key(service))
        return secret.get_secret_value() if secret else None

    def spool_of(self, service: str) -> Path:
        """The spool folder of a service."""
        return self.spool.get(service_key(service)) or self.state_dir / "spool" / service

    def streams(self, service: str) -> bool:
        """Whether the agent of a service takes the log from the server as it is written."""
        return self.log.get(service_key(service)) == "stream"

    def fence_of(self, service: str) -> str | None:
        """The command that puts a service's old server out of action, or None where none was given."""
        return self.fence.get(service_key(service))

    def switch_of(self, service: str) -> str | None:
        """The command that leads a service's clients to another server, or None where none was given."""
        return self.switch.get(service_key(service))

    def client_dsn_of(self, service: str) -> str | None:
        """How a service's clients connect, or None where that was not given."""
        secret = self.client_dsn.get(service_key(service))
        return secret.get_secret_value() if secret else None

    def connection_file_of(self, service: str) -> Path | None:
        """The file that a service's clients follow, or None where none was given."""
        return self.connection_file.get(service_key(service))

    def as_environment(self) -> dict[str, str]:
        """The variables that make `load_settings` in another process read the same; holds secrets."""
        found: dict[str, str] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            entries = value.items() if isinstance(value, Mapping) else [(None, value)]
            for key, entry in entries:
                if entry is not None:
                    text = entry.get_secret_value() if isinstance(entry, SecretStr) else str(entry)
                    found["__".join(["DR_" + name.upper(), *([key.upper()] if key else [])])] = text
        return found


def variable(name: str, service: str) -> str:
    """The variable that says it for one service, such as DR_DSN__ORDERS_DB for "dsn" of "orders-db"."""
    return f"DR_{name}__{service_key(service)}".upper()


def service_key(service: str) -> str:
    """A service's name as it stands in variables: no shell can set one with a hyphen in its name."""
    return service.lower().replace("-", "_")


def load_settings() -> Settings:
    """Read the environment. Raises ConfigurationError that names each variable that cannot be accepted."""
    try:
        return Settings()
    except SettingsError as error:
        raise ConfigurationError(
            f"the environment cannot be accepted: {error}", hint="values by service are named DR_DSN__DATABASE"
        ) from None
    except ValidationError as error:
        problems = "; ".join(
            f"DR_{'__'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
            for problem in error.errors()
        )
        raise ConfigurationError(f"the environment cannot be accepted: {problems}") from None
