"""A process that notes what it does, and kills itself with SIGKILL at an exact point, as its environment says.

DR_TEST_TRACE   a file: one line for each thing that is done
DR_TEST_KILL    POINT|PATTERN|N|before or after: at the Nth thing of that point whose subject the pattern finds
"""

import functools
import os
import re
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dr_pipelines.agent.spool import Spool
from dr_pipelines.engines.parts import PartReader
from dr_pipelines.engines.postgres.staging import Stage
from dr_pipelines.repository.folder import FolderStore
from dr_pipelines.runbooks import database_restore as runbook

POINTS: Mapping[str, tuple[Any, str]] = {
    "put": (FolderStore, "put"),
    "put if absent": (FolderStore, "put_if_absent"),
    "delete": (FolderStore, "delete"),
    "remove from the spool": (Spool, "remove"),
    "fetch a part": (PartReader, "_restore_part"),
    "fetch a segment": (Stage, "_fetch"),
    "recover": (runbook, "start_recovered"),
    "validate": (runbook, "validate"),
}


def arm() -> None:
    """Do what the environment says, from now on."""
    trace = os.environ.get("DR_TEST_TRACE")
    point, pattern, number, when = os.environ.get("DR_TEST_KILL", "||0|").split("|")
    left = int(number)

    def watched(name: str, action: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(action)
        def carry_out(*arguments: Any, **more: Any) -> Any:
            nonlocal left
            subject = next((str(getattr(each, "key", each)) for each in arguments[1:2]), "")
            if trace:
                with Path(trace).open("a") as file:
                    file.write(f"{name} {subject[:200]}\n")
            hit = name == point and re.search(pattern, subject) is not None
            left -= hit
            # Others may go on meanwhile.
            is_it = hit and left == 0
            if is_it and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = action(*arguments, **more)
            if is_it and when == "after":
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return carry_out

    for name, (owner, attribute) in POINTS.items():
        setattr(owner, attribute, watched(name, getattr(owner, attribute)))
