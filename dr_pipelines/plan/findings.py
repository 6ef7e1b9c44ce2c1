"""What is wrong, or too tight, in a recovery plan."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level"]


class Level(StrEnum):
    """How bad a finding is: a plan with an error is refused."""

    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or too tight; `where` is the field's path, lines count from 1."""

    level: Level
    where: str
    message: str
    line: int | None

    def located(self, name: str) -> str:
        """One line for a person: file, line, field and message, as compilers write them."""
        place = name if self.line is None else f"{name}:{self.line}"
        return ": ".join(part for part in (place, self.where, self.message) if part)
