"""docs/benchmarks.md: one section for each benchmark, each with when and on what it was measured."""

import platform
import re
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dr_pipelines.timing import format_bytes

__all__ = ["put"]

_HEAD = """\
# Benchmarks

Written by `make bench`, section by section. Contenders take turns within each round; seconds are of one machine, ratios
carry over.
"""
_TITLES = {
    "pgbackrest": "Backup and restore beside pgBackRest",
    "incremental": "Incremental backups and the restore of a chain",
    "replay": "Point-in-time replay from S3",
    "archive": "Archiving a segment",
    "field": "Backup and restore beside commands",
    "orchestration": "Orchestration",
}


def put(page: Path, name: str, text: str) -> None:
    """Write the section `name`; the others stay as they are."""
    before = page.read_text() if page.exists() else ""
    sections = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- |\Z)", before, flags=re.DOTALL))
    sections[name] = f"## {_TITLES[name]}\n\n{text.strip()}\n\n{_circumstances()}\n"
    parts = [f"<!-- {each} -->\n{sections[each]}" for each in _TITLES if each in sections]
    page.parent.mkdir(exist_ok=True)
    page.write_text("\n".join([_HEAD, *parts]))


def _circumstances() -> str:
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    processors = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", processors)
    return (
        f"Measured {datetime.now(UTC):%Y-%m-%d} on {processors.count('processor	')} cores "
        f"({model[1] if model else platform.machine()}), {format_bytes(memory)}, Linux {platform.release()}, "
        f"Python {platform.python_version()}, zstandard {version('zstandard')}."
    )
