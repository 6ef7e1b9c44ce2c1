"""The agent's log: one JSON object a line on standard error, for whatever collects the host's logs."""

import json
import logging
import sys
from datetime import UTC, datetime

from dr_pipelines.timing import format_moment

__all__ = ["configure", "say"]

_logger = logging.getLogger("dr_pipelines.agent")


def say(event: str, level: int = logging.INFO, /, **fields: object) -> None:
    """Write one line; values are shown as JSON or, where JSON has no such thing, as text. No secrets."""
    _logger.log(level, event, extra={"fields": fields})


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": format_moment(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure() -> None:
    """Send what this process logs, libraries' warnings too, to standard error as lines of JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    _logger.setLevel(logging.INFO)
