"""Where Dagster's own command is started from, and the home it keeps its database in. Nothing here needs Dagster."""

import shutil
from pathlib import Path

from dr_pipelines.errors import ConfigurationError
from dr_pipelines.processes.identity import open_folder
from dr_pipelines.settings import Settings

__all__ = ["DAEMON_LIMIT", "checkout", "prepare_home"]

DAEMON_LIMIT = 120.0
"""Seconds of silence from which on one of Dagster's daemons is taken for dead; each writes every 30."""
_CONFIGURATION = "dagster.yaml"


def checkout() -> Path:
    """The checkout that this code was loaded from. Raises ConfigurationError where it was installed without one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / "definitions.py").is_file():
        raise ConfigurationError(
            "Dagster's definitions are not here: this is dr_pipelines without its checkout",
            hint="clone the Git repository and run `make setup` there; restores work without it (dr restore)",
        )
    return folder


def prepare_home(settings: Settings) -> Path:
    """Dagster's home with the configuration it is to be started with; the value for DAGSTER_HOME.

    Below the state folder the configuration is always that of deploy/dagster.yaml. A home that DAGSTER_HOME names is
    somebody's own: a configuration that lies there is left as it is.
    """
    home = settings.dagster_home
    open_folder(home.parent)
    # What passes between steps lies in it, and logs: nothing for other users.
    home.mkdir(mode=0o700, exist_ok=True)
    wanted = checkout() / "deploy" / _CONFIGURATION
    present = home / _CONFIGURATION
    own = home == settings.state_dir / "dagster"
    if not present.exists() or (own and present.read_bytes() != wanted.read_bytes()):
        draft = home / f".{_CONFIGURATION}.draft"
        shutil.copyfile(wanted, draft)
        draft.replace(present)
    return home
