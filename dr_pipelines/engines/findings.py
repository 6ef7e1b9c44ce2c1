"""What somebody who looked around has found: how things are, and what to do where they are not as they should be."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level"]


class Level(StrEnum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    """It works, but something can go wrong or be lost."""
    PROBLEM = "problem"
    """A backup, a restore or a drill will fail, or loses more than was promised."""
    OFF = "off"
    """It is not there, not configured or stopped, so it could not be looked at."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, what was seen, and its mend, which is empty where there is nothing to mend."""

    area: str
    looked_at: str
    level: Level
    seen: str
    mend: str = ""
