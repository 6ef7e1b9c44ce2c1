"""scripts/backup.sh, where a server can run it: what archive_command calls."""

import os
from pathlib import Path

from dr_pipelines.processes.identity import open_folder

__all__ = ["install_archive_script"]

_NAME = "backup.sh"


def install_archive_script(state_dir: Path) -> Path:
    """Put a copy below the state folder, which servers can reach: the checkout may lie in a private home.

    A copy that differs is replaced.
    """
    place = open_folder(state_dir / "bin") / _NAME
    # In a checkout a link that leads to scripts/, in the wheel the file itself.
    content = (Path(__file__).parents[2] / _NAME).read_bytes()
    if not place.exists() or place.read_bytes() != content:
        draft = place.with_name(f".{_NAME}.{os.getpid()}")
        draft.write_bytes(content)
        draft.chmod(0o755)
        draft.replace(place)
    return place
