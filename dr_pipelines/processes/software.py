"""Software below the state folder, where those who run servers can reach it.

What was installed for one user, below /root say, an unprivileged server cannot execute. It is put below the state
folder, once, and taken from there ever after.
"""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from dr_pipelines.errors import ProcessError
from dr_pipelines.processes.identity import Identity, check_reachable, open_folder, run
from dr_pipelines.processes.locks import file_lock

__all__ = ["can_execute", "install_once"]


def can_execute(program: Path, identity: Identity | None) -> bool:
    """Whether the identity reaches this program and may run it; asked with `--version`."""
    try:
        run([str(program), "--version"], identity=identity, timeout=30, check=False)
    except ProcessError:
        return False
    return True


def install_once(state_dir: Path, name: str, put: Callable[[Path], None], identity: Identity | None) -> Path:
    """The folder software/`name` below the state folder; `put` fills it the first time, in an empty folder.

    It appears under its name complete and readable by all, or not at all. Raises ConfigurationError where the identity
    cannot get there.
    """
    shelf = open_folder(open_folder(state_dir) / "software")
    place = shelf / name
    check_reachable(place, identity)
    if place.is_dir():
        return place
    with file_lock(shelf / ".lock"):
        if not place.is_dir():
            for left in shelf.glob(".partial-*"):  # by somebody who was killed: nobody else is here
                shutil.rmtree(left)
            partial = shelf / f".partial-{name}"
            partial.mkdir()
            put(partial)
            _let_all_read(partial)
            partial.rename(place)
    return place


def _let_all_read(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        os.chmod(parent, 0o755)
        for file in files:
            path = os.path.join(parent, file)
            mode = os.lstat(path).st_mode
            wanted = mode | 0o444 | (0o111 if mode & stat.S_IXUSR else 0)
            # A file that is linked, not copied, is left as it is.
            if wanted != mode and stat.S_ISREG(mode):
                os.chmod(path, wanted)
