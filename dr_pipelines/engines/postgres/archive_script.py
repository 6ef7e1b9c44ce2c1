"""scripts/backup.sh, where a server can run it: what archive_command calls."""

import os
from pathlib import Path

from dr_pipelines.errors import MissingSoftware
from dr_pipelines.processes.identity import open_folder

__all__ = ["install_archive_script"]

_NAME = "backup.sh"


def install_archive_script(state_dir: Path) -> Path:
    """Put a copy below the state folder, which servers can reach: the checkout may lie in a private home.

    A copy that differs is replaced. Raises MissingSoftware where this installation has none.
    """
    source = _source()
    place = open_folder(state_dir / "bin") / _NAME
    content = source.read_bytes()
    if not place.exists() or place.read_bytes() != content:
        draft = place.with_name(f".{_NAME}.{os.getpid()}")
        draft.write_bytes(content)
        draft.chmod(0o755)
        draft.replace(place)
    return place


def _source() -> Path:
    package = Path(__file__).parents[2]
    for place in (package.parent / "scripts" / _NAME, package / "scripts" / _NAME):
        if place.is_file():
            return place
    raise MissingSoftware(
        f"scripts/{_NAME}, which archive_command calls, is not in this installation",
        hint="install the wheel of this version, or work in the checkout",
    )
